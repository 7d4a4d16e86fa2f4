/** Reads and writes safetensors files, to damage them on purpose. */

/**
 * @param {Buffer} file
 * @returns {{ header: { [tensor: string]: any }, headerLength: number, data: Buffer }}
 */
export function readSafetensors(file) {
  const length = Number(file.readBigUInt64LE(0));
  return {
    header: JSON.parse(file.toString("utf8", 8, 8 + length)),
    headerLength: length,
    data: file.subarray(8 + length),
  };
}

/** The header is padded to its old length: an exported ONNX graph points behind it by offset. */
export function writeSafetensors({ header, headerLength, data }) {
  const json = Buffer.from(JSON.stringify(header).padEnd(headerLength));
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(json.length));
  return Buffer.concat([length, json, data]);
}
