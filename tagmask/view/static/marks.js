// What a tool draws over the photo: numbered seeds, the brush's ring, the open polygon.

export function drawMarks(context, editor, ring, to, scale) {
  // Dark below light, so that the lines are seen on any photo.
  const twice = (path) => {
    for (const [colour, width] of [['#000', 3], ['#fff', 1.5]]) {
      context.strokeStyle = colour;
      context.lineWidth = width;
      context.beginPath();
      path();
      context.stroke();
    }
  };
  context.font = '600 11px system-ui, sans-serif';
  context.textAlign = 'center';
  context.textBaseline = 'middle';
  editor.seeds.forEach(([x, y, label], i) => {
    const [sx, sy] = to(x + 0.5, y + 0.5);
    context.fillStyle = label === 0 ? '#000' : '#fff';
    context.beginPath();
    context.arc(sx, sy, 9, 0, 7);
    context.fill();
    twice(() => context.arc(sx, sy, 9, 0, 7));
    context.fillStyle = label === 0 ? '#fff' : '#000';
    context.fillText(i + 1, sx, sy + 0.5);
  });
  const { points, pointer } = editor;
  if (ring && pointer) twice(() => context.arc(...to(...pointer), Math.max(2, (editor.size / 2) * scale), 0, 7));
  if (points.length) {
    twice(() => {
      for (const point of points) context.lineTo(...to(...point));
      if (pointer) context.lineTo(...to(...pointer));
    });
    twice(() => context.arc(...to(...points[0]), 5, 0, 7));
  }
}
