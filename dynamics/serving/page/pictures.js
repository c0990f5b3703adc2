// Pictures that a person brings: a file, a drop or a paste becomes base64 that the service takes.

import { Failure } from "./service.js";

const TAKEN = ["image/png", "image/jpeg", "image/webp"];
const MAX_BYTES = 4 * 2 ** 20;
const MAX_SIDE = 5000; // 25 million pixels
const MOST_LINK_CHARS = 12_000; // longer addresses do not survive mail and chat
const SHRUNK_SIDE = 1024; // the model sees far fewer pixels

/** Base64 of a picture file; one that is too large, or of another kind, is drawn anew as PNG. */
export async function toBase64(file) {
  if (!file.type.startsWith("image/")) throw new Failure(`${file.name} is not a picture.`);
  let bitmap;
  try {
    bitmap = await createImageBitmap(file);
  } catch {
    throw new Failure(`This browser cannot read ${file.name}; a PNG or JPEG will do.`);
  }
  const fits = Math.max(bitmap.width, bitmap.height) <= MAX_SIDE && file.size <= MAX_BYTES;
  return encode(fits && TAKEN.includes(file.type) ? file : await redraw(bitmap));
}

/** A `data:` address for what `toBase64` gave; browsers look at the bytes, not at the type. */
export const address = (base64) => `data:image/png;base64,${base64}`;

/** A picture as part of an address; "" where it is too large for one. */
export const forLink = (base64) =>
  base64.length > MOST_LINK_CHARS
    ? ""
    : base64.replaceAll("+", "-").replaceAll("/", "_").replace(/=+$/, "");

/** What `forLink` gave as base64. */
export const fromLink = (text) => text.replaceAll("-", "+").replaceAll("_", "/");

/** The first picture of a drop or a paste. */
export function pictureIn(transfer) {
  return [...(transfer?.files ?? [])].find((file) => file.type.startsWith("image/"));
}

function redraw(bitmap) {
  const scale = Math.min(1, SHRUNK_SIDE / Math.max(bitmap.width, bitmap.height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(bitmap.width * scale));
  canvas.height = Math.max(1, Math.round(bitmap.height * scale));
  canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
}

async function encode(blob) {
  const bytes = new Uint8Array(await blob.arrayBuffer());
  const parts = [];
  for (let at = 0; at < bytes.length; at += 32768) {
    parts.push(String.fromCharCode(...bytes.subarray(at, at + 32768)));
  }
  return btoa(parts.join(""));
}
