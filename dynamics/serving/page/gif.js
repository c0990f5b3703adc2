// A GIF of a few small frames: one palette for all, and no compression, which needs no table of codes.

const SCALE_TO = 256;
const COLOURS = 128;
const CLEAR = 128;
const END = 129;
const BEFORE_CLEAR = 120; // a decoder's codes would grow to 9 bits after 126 of them

/** The bytes of a GIF that shows frames (base64 of PNG) for `seconds` each, again and again. */
export async function gif(frames, seconds) {
  const pictures = await Promise.all(frames.map(pixels));
  const { width, height } = pictures[0];
  const palette = paletteOf(pictures);
  const out = [...text("GIF89a"), ...short(width), ...short(height), 0xf6, 0, 0];
  for (let index = 0; index < COLOURS; index += 1) out.push(...(palette.colours[index] ?? [0, 0, 0]));
  out.push(0x21, 0xff, 11, ...text("NETSCAPE2.0"), 3, 1, 0, 0, 0);
  for (const { data } of pictures) {
    out.push(0x21, 0xf9, 4, 4, ...short(Math.round(100 * seconds)), 0, 0);
    out.push(0x2c, 0, 0, 0, 0, ...short(width), ...short(height), 0, 7);
    const codes = [CLEAR];
    for (let at = 0; at < data.length; at += 4) {
      if ((at / 4) % BEFORE_CLEAR === BEFORE_CLEAR - 1) codes.push(CLEAR);
      codes.push(palette.nearest(data[at], data[at + 1], data[at + 2]));
    }
    codes.push(END);
    for (let at = 0; at < codes.length; at += 255) {
      const block = codes.slice(at, at + 255);
      out.push(block.length);
      for (const code of block) out.push(code);
    }
    out.push(0);
  }
  return new Uint8Array([...out, 0x3b]);
}

const text = (word) => [...word].map((letter) => letter.charCodeAt(0));
const short = (value) => [value & 255, value >> 8];

/** A frame, enlarged by a whole factor without smoothing. */
async function pixels(base64) {
  const image = new Image();
  image.src = `data:image/png;base64,${base64}`;
  await image.decode();
  const scale = Math.max(1, Math.floor(SCALE_TO / image.width));
  const canvas = document.createElement("canvas");
  canvas.width = scale * image.width;
  canvas.height = scale * image.height;
  const pen = canvas.getContext("2d");
  pen.imageSmoothingEnabled = false;
  pen.drawImage(image, 0, 0, canvas.width, canvas.height);
  return pen.getImageData(0, 0, canvas.width, canvas.height);
}

/** The most frequent colours of all pictures, and the nearest of them to any colour. */
function paletteOf(pictures) {
  const counts = new Map();
  const cell = (r, g, b) => ((r >> 3) << 10) | ((g >> 3) << 5) | (b >> 3);
  for (const { data } of pictures) {
    for (let at = 0; at < data.length; at += 4) {
      const key = cell(data[at], data[at + 1], data[at + 2]);
      const seen = counts.get(key);
      if (seen) seen.count += 1;
      else counts.set(key, { count: 1, colour: [data[at], data[at + 1], data[at + 2]] });
    }
  }
  const byCount = [...counts.values()].sort((one, other) => other.count - one.count);
  const colours = byCount.slice(0, COLOURS).map(({ colour }) => colour);
  const known = new Map();
  const nearest = (r, g, b) => {
    const key = cell(r, g, b);
    if (!known.has(key)) {
      const far = colours.map(([x, y, z]) => (x - r) ** 2 + (y - g) ** 2 + (z - b) ** 2);
      known.set(key, far.indexOf(Math.min(...far)));
    }
    return known.get(key);
  };
  return { colours, nearest };
}
