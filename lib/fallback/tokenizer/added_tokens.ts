import { isWordCharacter } from "./unicode.js";

/** An entry of `added_tokens` in `tokenizer.json`. */
export interface AddedToken {
  id: number;
  content: string;
  normalized?: boolean;
  special?: boolean;
  single_word?: boolean;
  lstrip?: boolean;
  rstrip?: boolean;
}

export function isNormalized({ normalized, special }: AddedToken): boolean {
  return normalized ?? !special;
}

interface Node {
  token?: AddedToken;
  next: Map<string, Node>;
}

/** Finds added tokens in texts, as the addon's tokenizer does (`AddedVocabulary::find_matches` of `tokenizers` 0.23.2). */
export class AddedTokens {
  readonly #root: Node = { next: new Map() };

  /** @param tokens The content to look for, and its token. */
  constructor(tokens: [content: string, token: AddedToken][]) {
    for (const [content, token] of tokens) {
      let node = this.#root;
      for (const unit of content.split("")) {
        const next: Node = node.next.get(unit) ?? { next: new Map() };
        node.next.set(unit, next);
        node = next;
      }
      if (node.token && node.token.id !== token.id) {
        throw new Error(`added tokens ${node.token.id} and ${token.id} are both ${JSON.stringify(content)}`);
      }
      if (content !== "") node.token = token;
    }
  }

  /** The text between added tokens, and their ids. The longest of the tokens that begin first is taken. */
  split(text: string): (string | number)[] {
    const parts: (string | number)[] = [];
    let end = 0;
    let at = 0;
    while (at < text.length) {
      const [token, length] = this.#longestAt(text, at);
      if (!token) {
        at++;
        continue;
      }
      let [start, stop] = [at, at + length];
      at = stop;
      if (token.single_word && (endsWithWord(text, start) || beginsWithWord(text, stop))) continue;
      if (token.lstrip) while (start > end && isSpace(text, start - 1)) start--;
      if (token.rstrip) while (stop < text.length && isSpace(text, stop)) stop++;
      if (end < start) parts.push(text.slice(end, start));
      parts.push(token.id);
      end = stop;
    }
    if (end !== text.length) parts.push(text.slice(end));
    return parts;
  }

  #longestAt(text: string, start: number): [AddedToken | undefined, number] {
    let longest: AddedToken | undefined;
    let length = 0;
    let node = this.#root.next.get(text.charAt(start));
    for (let at = start + 1; node; node = node.next.get(text.charAt(at++))) {
      if (node.token) [longest, length] = [node.token, at - start];
    }
    return [longest, length];
  }
}

/** All whitespace is of one UTF-16 unit. */
function isSpace(text: string, at: number): boolean {
  return /\p{White_Space}/u.test(text.charAt(at));
}

function beginsWithWord(text: string, at: number): boolean {
  return at < text.length && isWordCharacter(String.fromCodePoint(text.codePointAt(at) as number));
}

function endsWithWord(text: string, at: number): boolean {
  const before = [...text.slice(Math.max(0, at - 2), at)].at(-1);
  return before !== undefined && isWordCharacter(before);
}
