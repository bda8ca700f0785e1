"""What models that others trained know, where a user has them."""
