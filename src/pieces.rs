//! Splits a long text into pieces that give the same tokens separately as together.
//!
//! Truncation keeps a few hundred tokens of a text of any length. Piece by piece, no more of it is tokenized than the limit
//! allows. A piece leaves out what cannot change a token: repeated whitespace, characters that the normalizer removes, and
//! the middle of words that are too long for WordPiece, which turns them into one unknown token. So the size of a piece is
//! bounded, whatever the text.
//!
//! That takes a tokenizer which looks at characters one by one, as BERT's does. `SentencePiece`'s and byte-level ones look at
//! the neighbors of a character, but never beyond the space that ends a word: their texts are split there, and nothing is
//! left out. Gemma's has no words; its vocabulary shows that it joins no letter to a space behind it.

use std::collections::{HashMap, HashSet, VecDeque};
use std::iter::Peekable;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU8, Ordering};

use serde_json::{Value, json};
use tokenizers::models::ModelWrapper;
use tokenizers::{
    AddedToken, NormalizedString, Normalizer, NormalizerWrapper, OffsetReferential, OffsetType,
    PreTokenizedString, PreTokenizer, PreTokenizerWrapper, Tokenizer as HfTokenizer,
};

use crate::error::{Error, Result};

/// Characters read between two checks whether to stop.
const CHARACTERS_PER_CHECK: usize = 1 << 16;

/// How a tokenizer treats a character, as bits.
#[derive(Clone, Copy)]
struct Character(u8);

impl Character {
    /// Gives no token: whitespace, or removed by the normalizer.
    const BLANK: u8 = 1;
    /// Part of a word, as a letter is.
    const IN_WORD: u8 = 1 << 1;
    /// No word reaches across it.
    const ENDS_WORD: u8 = 1 << 2;
    /// The text may be split before it.
    const SPLIT_BEFORE: u8 = 1 << 3;
    /// The text may be split after it.
    const SPLIT_AFTER: u8 = 1 << 4;
    /// A letter: the text may be split between it and a space.
    const LETTER: u8 = 1 << 5;
    /// A space.
    const SPACE: u8 = 1 << 6;
    /// The other bits are valid.
    const KNOWN: u8 = 1 << 7;

    fn is(self, bit: u8) -> bool {
        self.0 & bit != 0
    }
}

/// Where a tokenizer's texts may be split, and what may be left out of them.
pub(crate) struct PieceRules {
    lower_case: bool,
    /// Whether texts are split between words only.
    keeps_words: bool,
    /// Characters of added tokens except their first ones: a split before such a character could tear a token.
    behind_first: HashSet<char>,
    /// Characters of added tokens except their last ones: a split after such a character could tear a token.
    ahead_of_last: HashSet<char>,
    /// Longest added token, in characters.
    longest_added_token: usize,
    /// In a word with more letters than this, the letters beyond may be left out; `None` if every letter counts.
    letters_of_word: Option<usize>,
    /// [`Character`] by code point; 0 if not known yet.
    characters: Vec<AtomicU8>,
}

impl PieceRules {
    /// `None` for a tokenizer whose texts have to be tokenized whole because nothing else is known to be safe.
    pub fn of(tokenizer: &HfTokenizer, lower_case: bool) -> Option<Self> {
        let keeps_words = !takes_characters_one_by_one(tokenizer);
        if keeps_words && !takes_words_one_by_one(tokenizer) {
            return None;
        }
        let mut rules = Self {
            lower_case,
            keeps_words,
            behind_first: HashSet::new(),
            ahead_of_last: HashSet::new(),
            longest_added_token: 0,
            letters_of_word: match tokenizer.get_model() {
                ModelWrapper::WordPiece(model) if !keeps_words => {
                    Some(model.max_input_chars_per_word)
                }
                _ => None,
            },
            characters: std::iter::repeat_with(AtomicU8::default)
                .take(char::MAX as usize + 1)
                .collect(),
        };
        let added_tokens = tokenizer.get_added_tokens_decoder();
        for token in added_tokens.values() {
            rules.forbid_splits_within(tokenizer, token)?;
        }
        // Only now, since the answers depend on all added tokens.
        for token in added_tokens.values() {
            let is_any = |bit| {
                let mut characters = token.content.chars();
                characters.any(|c| rules.character(tokenizer, c).is(bit))
            };
            if is_any(Character::BLANK) {
                return None;
            }
            // A word of letters only could contain the token anywhere.
            if token.normalized || !is_any(Character::ENDS_WORD) {
                rules.letters_of_word = None;
            }
        }
        Some(rules)
    }

    /// Added tokens are found before the text is split into words. `None` if the token depends on more than its own
    /// characters, or a split could be within it whatever characters it has: at whitespace.
    fn forbid_splits_within(&mut self, tokenizer: &HfTokenizer, token: &AddedToken) -> Option<()> {
        let content = if token.normalized {
            words(tokenizer, &token.content)?.0
        } else {
            token.content.clone()
        };
        let reaches_on = token.rstrip && self.keeps_words;
        let is_torn = if self.keeps_words {
            has_end_of_word(&content)
        } else {
            content.contains(char::is_whitespace)
        };
        if token.single_word || reaches_on || is_torn {
            return None;
        }
        let length = content.chars().count();
        let ahead_of_last = content.chars().take(length.saturating_sub(1));
        self.behind_first.extend(content.chars().skip(1));
        self.ahead_of_last.extend(ahead_of_last);
        self.longest_added_token = self.longest_added_token.max(length);
        Some(())
    }

    fn character(&self, tokenizer: &HfTokenizer, c: char) -> Character {
        let known = &self.characters[c as usize];
        let mut bits = known.load(Ordering::Relaxed);
        if bits == 0 {
            bits = self.find_out(tokenizer, c) | Character::KNOWN;
            known.store(bits, Ordering::Relaxed);
        }
        Character(bits)
    }

    /// Whether texts may be split on both sides of a character.
    #[cfg(test)]
    pub fn may_be_split_at(&self, tokenizer: &HfTokenizer, c: char) -> bool {
        let character = self.character(tokenizer, c);
        character.is(Character::SPLIT_BEFORE) && character.is(Character::SPLIT_AFTER)
    }

    /// Tries the tokenizer itself, with a word around the character.
    fn find_out(&self, tokenizer: &HfTokenizer, c: char) -> u8 {
        if self.keeps_words {
            return match c {
                ' ' => Character::SPACE,
                'a'..='z' | 'A'..='Z' => Character::LETTER,
                _ => 0,
            };
        }
        let own = self.prepare(c.to_string());
        let Some((normalized, _)) = words(tokenizer, &own) else {
            return Character::ENDS_WORD;
        };
        let (_, words) = words(tokenizer, &format!("a{own}a")).unwrap_or_default();
        let bits = match &*words.iter().map(String::as_str).collect::<Vec<_>>() {
            ["aa"] => return Character::BLANK,
            [word] if word.starts_with('a') && word.ends_with('a') => return Character::IN_WORD,
            ["a", "a"] => Character::BLANK,
            ["a", .., "a"] => 0,
            // It splits the word on one side only, or does something unforeseen.
            _ => return Character::ENDS_WORD,
        };
        let is_in = |set: &HashSet<char>| {
            own.chars()
                .chain(normalized.chars())
                .any(|c| set.contains(&c))
        };
        let mut bits = bits | Character::ENDS_WORD;
        if !is_in(&self.behind_first) {
            bits |= Character::SPLIT_BEFORE;
        }
        if !is_in(&self.ahead_of_last) {
            bits |= Character::SPLIT_AFTER;
        }
        bits
    }

    fn prepare(&self, text: String) -> String {
        if self.lower_case {
            text.to_lowercase()
        } else {
            text
        }
    }
}

/// Whether the tokenizer normalizes each character, and finds the ends of words, independently of the neighbours.
fn takes_characters_one_by_one(tokenizer: &HfTokenizer) -> bool {
    let normalizes_them = match tokenizer.get_normalizer() {
        // Its canonical decomposition sorts combining marks, but moves none out of their word.
        None | Some(NormalizerWrapper::BertNormalizer(_)) => true,
        Some(_) => false,
    };
    let splits_at_them = match tokenizer.get_pre_tokenizer() {
        Some(PreTokenizerWrapper::BertPreTokenizer(_)) => true,
        // Byte-level pre-tokenizers and Metaspace depend on neighbours.
        Some(_) | None => false,
    };
    normalizes_them && splits_at_them
}

/// Whether a text gives the same tokens in two parts, if the first ends with an ASCII letter and the second begins with a
/// space.
fn takes_words_one_by_one(tokenizer: &HfTokenizer) -> bool {
    let normalizer = tokenizer.get_normalizer();
    let normalizer = normalizer.map(|part| serde_json::to_value(part).unwrap_or_default());
    let pre_tokenizer = tokenizer.get_pre_tokenizer();
    let pre_tokenizer = pre_tokenizer.map(|part| serde_json::to_value(part).unwrap_or_default());
    let begins_words = normalizer.as_ref().is_none_or(keeps_spaces)
        && pre_tokenizer.as_ref().is_some_and(begins_words_with_spaces);
    // Gemma's: spaces become letters of a text that is a single word.
    let has_no_words = normalizer.is_some_and(|part| part == *SPACES_TO_LETTERS)
        && pre_tokenizer.is_none_or(|part| part == *SPLIT_AT_SPACES);
    begins_words || has_no_words && joins_no_words(tokenizer.get_model())
}

/// The letter that stands for a space.
const SPACE_LETTER: char = '▁';

static SPACES_TO_LETTERS: LazyLock<Value> = LazyLock::new(
    || json!({"type": "Replace", "pattern": {"String": " "}, "content": SPACE_LETTER.to_string()}),
);

static SPLIT_AT_SPACES: LazyLock<Value> = LazyLock::new(|| {
    json!({
        "type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": false,
    })
});

/// Qwen2's and Qwen3's. What it finds ends with a letter, or does not depend on what is behind the next space.
const QWEN_WORDS: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Whether a model never merges an ASCII letter and a space behind it: both are tokens, and no token contains both.
fn joins_no_words(model: &ModelWrapper) -> bool {
    let ModelWrapper::BPE(model) = model else {
        return false;
    };
    let vocabulary = model.get_vocab();
    let mut letters = ('a'..='z').chain('A'..='Z').chain([SPACE_LETTER]);
    !model.ignore_merges
        && model.continuing_subword_prefix.is_none()
        && model.end_of_word_suffix.is_none()
        && letters.all(|letter| vocabulary.contains_key(&*letter.to_string()))
        && !vocabulary.keys().any(|token| has_end_of_word(token))
}

/// Whether a text contains a place where a text may be split between words.
fn has_end_of_word(text: &str) -> bool {
    let mut pairs = text.chars().zip(text.chars().skip(1));
    pairs.any(|(left, right)| left.is_ascii_alphabetic() && (right == ' ' || right == SPACE_LETTER))
}

/// Whether a normalizer treats what is before a space and what follows independently.
fn keeps_spaces(normalizer: &Value) -> bool {
    match normalizer["type"].as_str() {
        Some("Precompiled" | "NFC" | "NFKC") => true,
        Some("Replace") => {
            normalizer["pattern"]["Regex"] == " {2,}" && normalizer["content"] == " "
        }
        Some("Sequence") => {
            let steps = normalizer["normalizers"].as_array();
            steps.is_some_and(|steps| steps.iter().all(keeps_spaces))
        }
        _ => false,
    }
}

/// Whether a pre-tokenizer begins a word at a space behind a letter, and would do so at the beginning of a text.
fn begins_words_with_spaces(pre_tokenizer: &Value) -> bool {
    match pre_tokenizer["type"].as_str() {
        Some("Metaspace") => {
            pre_tokenizer["prepend_scheme"] != "first" && pre_tokenizer["split"] == true
        }
        Some("ByteLevel") => pre_tokenizer["use_regex"] == true,
        Some("Sequence") => match pre_tokenizer["pretokenizers"].as_array().map(Vec::as_slice) {
            Some([first, second]) if first["type"] == "WhitespaceSplit" => {
                second["type"] == "Metaspace" && second["prepend_scheme"] != "first"
            }
            Some([first, second]) if first["type"] == "Split" => {
                first["pattern"]["Regex"] == QWEN_WORDS
                    && first["behavior"] == "Isolated"
                    && first["invert"] == false
                    && second["type"] == "ByteLevel"
            }
            _ => false,
        },
        _ => false,
    }
}

/// A text without added tokens, normalized, and its words; `None` if the tokenizer refuses it.
fn words(tokenizer: &HfTokenizer, text: &str) -> Option<(String, Vec<String>)> {
    let mut normalized = NormalizedString::from(text);
    if let Some(normalizer) = tokenizer.get_normalizer() {
        normalizer.normalize(&mut normalized).ok()?;
    }
    let mut split = PreTokenizedString::from(normalized.clone());
    if let Some(pre_tokenizer) = tokenizer.get_pre_tokenizer() {
        pre_tokenizer.pre_tokenize(&mut split).ok()?;
    }
    let words = split.get_splits(OffsetReferential::Normalized, OffsetType::None);
    let words = words
        .into_iter()
        .map(|(word, ..)| word.to_owned())
        .collect();
    Some((normalized.get().to_owned(), words))
}

/// The pieces of one text, from the side that truncation keeps.
pub(crate) struct Pieces<'a, I: Iterator<Item = char>> {
    rules: &'a PieceRules,
    tokenizer: &'a HfTokenizer,
    /// From the first character to the last, or from the last to the first.
    characters: Peekable<I>,
    is_backward: bool,
    /// Bytes after which a piece ends at the next opportunity.
    length: usize,
    /// Runs of blank characters so far.
    blank_runs: usize,
    /// For each blank character, the latest run in which it was kept.
    latest_runs: HashMap<char, usize>,
    looked_at: usize,
}

impl<'a, I: Iterator<Item = char>> Pieces<'a, I> {
    /// `characters` are those of the text, in their order or, `is_backward`, from the last to the first.
    pub fn new(
        rules: &'a PieceRules,
        tokenizer: &'a HfTokenizer,
        characters: I,
        is_backward: bool,
        length: usize,
    ) -> Self {
        Self {
            rules,
            tokenizer,
            characters: characters.peekable(),
            is_backward,
            length,
            blank_runs: 0,
            latest_runs: HashMap::new(),
            looked_at: 0,
        }
    }

    /// The next piece; `None` when there is no more text.
    ///
    /// # Errors
    /// [`Error::Aborted`] if `should_stop` returns true.
    pub fn next(&mut self, should_stop: &dyn Fn() -> bool) -> Result<Option<String>> {
        let mut piece = String::new();
        let mut latest: Option<(char, Character)> = None;
        let mut letters = 0;
        // The latest characters of a word beyond the letters that count.
        let mut end_of_word = VecDeque::new();
        while let Some(&c) = self.characters.peek() {
            let character = self.rules.character(self.tokenizer, c);
            if piece.len() >= self.length
                && latest.is_some_and(|(_, latest)| self.may_split_between(latest, character))
            {
                break;
            }
            if self.looked_at.is_multiple_of(CHARACTERS_PER_CHECK) && should_stop() {
                return Err(Error::Aborted);
            }
            self.looked_at += 1;
            self.characters.next();
            let is_repeated = latest.is_some_and(|(latest, _)| latest == c);
            latest = Some((c, character));
            if character.is(Character::ENDS_WORD) {
                piece.extend(end_of_word.drain(..));
                letters = 0;
            }
            letters += usize::from(character.is(Character::IN_WORD));
            if character.is(Character::BLANK) {
                // One of each is kept, since a removed mark may keep others from being sorted.
                if is_repeated
                    || self.latest_runs.insert(c, self.blank_runs) == Some(self.blank_runs)
                {
                    continue;
                }
            } else {
                self.blank_runs += 1;
            }
            if self.is_beyond_limit(letters) {
                end_of_word.push_back(c);
                if end_of_word.len() > self.rules.longest_added_token {
                    end_of_word.pop_front();
                }
            } else {
                piece.push(c);
            }
        }
        piece.extend(end_of_word);
        if self.is_backward {
            piece = piece.chars().rev().collect();
        }
        Ok(latest.map(|_| self.rules.prepare(piece)))
    }

    /// Whether a word has more letters than WordPiece reads, and more than it could share with an added token next to it.
    fn is_beyond_limit(&self, letters: usize) -> bool {
        let limit = self.rules.letters_of_word;
        limit.is_some_and(|limit| letters > (limit + 1).max(self.rules.longest_added_token))
    }

    fn may_split_between(&self, latest: Character, next: Character) -> bool {
        let (left, right) = if self.is_backward {
            (next, latest)
        } else {
            (latest, next)
        };
        left.is(Character::SPLIT_AFTER)
            || right.is(Character::SPLIT_BEFORE)
            || left.is(Character::LETTER) && right.is(Character::SPACE)
    }
}
