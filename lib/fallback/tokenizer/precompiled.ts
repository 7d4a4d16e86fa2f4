/**
 * SentencePiece's normalization, from the table that a `tokenizer.json` carries: the length of a trie in bytes, the trie
 * (a double array, as darts-clone builds it), and the replacements, each ended by a zero. `@huggingface/tokenizers`
 * approximates it by rules of its own.
 *
 * Source: `spm_precompiled` 0.1.4, which the addon's tokenizer uses.
 */
export function precompiledNormalizer(charsMap: unknown): (text: string) => string {
  const table = typeof charsMap === "string" ? Buffer.from(charsMap, "base64") : Buffer.alloc(0);
  const trieBytes = table.length < 4 ? Number.NaN : table.readUInt32LE(0);
  if (!(trieBytes % 4 === 0 && 4 + trieBytes <= table.length)) {
    throw new Error("normalizer.precompiled_charsmap: expected a trie and its replacements in base64");
  }
  const trie = Uint32Array.from({ length: trieBytes / 4 }, (_, index) => table.readUInt32LE(4 + 4 * index));
  const replacements = table.subarray(4 + trieBytes);
  const known = new Map<string, string | undefined>();

  /** What the shortest beginning of `text` that is in the trie is replaced by. */
  const find = (text: string): string | undefined => {
    let place = 0;
    let unit = trie[0] ?? 0;
    place ^= offset(unit);
    for (const byte of Buffer.from(text)) {
      if (byte === 0) return undefined;
      place ^= byte;
      unit = trie[place] ?? 0;
      // The label, together with the bit that marks a value.
      if ((unit & 0x800000ff) >>> 0 !== byte) return undefined;
      place ^= offset(unit);
      if ((unit >>> 8) & 1) {
        const start = (trie[place] ?? 0) & 0x7fffffff;
        return replacements.toString("utf8", start, Math.max(start, replacements.indexOf(0, start)));
      }
    }
    return undefined;
  };
  const replacementOf = (text: string): string | undefined => {
    if (!known.has(text)) {
      if (known.size > 100_000) known.clear();
      known.set(text, find(text));
    }
    return known.get(text);
  };

  return (text) => {
    let normalized = "";
    for (const segment of graphemeClusters(text)) {
      // Longer ones are taken character by character.
      const whole = Buffer.byteLength(segment) < 6 ? replacementOf(segment) : undefined;
      if (whole !== undefined) normalized += whole;
      else for (const character of segment) normalized += replacementOf(character) ?? character;
    }
    return normalized;
  };
}

/** How far the children of a node are from it. */
function offset(unit: number): number {
  return (unit >>> 10) << ((unit & (1 << 9)) >>> 6);
}

const GRAPHEMES = new Intl.Segmenter("en");
const UNITS_PER_PART = 256;

/** The segmenter takes quadratic time, so it gets the text in parts. The last cluster of a part may go on behind it. */
function* graphemeClusters(text: string): Generator<string> {
  let units = UNITS_PER_PART;
  for (let start = 0; start < text.length; ) {
    const part = text.slice(start, start + units).replace(/[\ud800-\udbff]$/, "");
    const clusters = Array.from(GRAPHEMES.segment(part), ({ segment }) => segment);
    if (start + part.length < text.length) clusters.pop();
    units = clusters.length === 0 ? 2 * units : UNITS_PER_PART;
    for (const cluster of clusters) start += cluster.length;
    yield* clusters;
  }
}
