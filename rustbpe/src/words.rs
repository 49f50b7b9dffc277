//! Splits texts into words and counts them.
//!
//! A word is a match of the split pattern; no merge crosses words. The default
//! pattern is GPT-4's with numbers split into pairs of digits, as in nanochat. A
//! hand-written scanner finds its words without backtracking. The scanner's
//! character classes come from the tables of the regex library, so both agree on
//! every character. Other patterns use the regex library itself.

use std::sync::{Mutex, OnceLock, PoisonError};

use fancy_regex::Regex;
use rayon::prelude::*;
use regex_syntax::hir::{Class, HirKind};
use rustc_hash::FxHashMap;

/// The default pattern (nanochat's).
pub const SPLIT_PATTERN: &str = concat!(
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}",
    r"| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
);

/// How often each word occurs; words are UTF-8 bytes.
type Counts = FxHashMap<Box<[u8]>, u64>;

/// Texts that one thread processes at a time.
const TEXTS_PER_STEP: usize = 16;

/// The character classes of the default pattern.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Letter,
    Number,
    Newline,
    Space,
    Mark,
}

/// The kind of every character: blocks of 256, equal blocks stored once.
struct Kinds {
    block_of: Vec<u16>,
    blocks: Vec<[Kind; 256]>,
}

impl Kinds {
    fn get() -> &'static Kinds {
        static KINDS: OnceLock<Kinds> = OnceLock::new();
        KINDS.get_or_init(Kinds::build)
    }

    fn build() -> Kinds {
        let mut flat = vec![Kind::Mark; 0x11_0000];
        for (class, kind) in
            [(r"\s", Kind::Space), (r"\p{L}", Kind::Letter), (r"\p{N}", Kind::Number), (r"[\r\n]", Kind::Newline)]
        {
            let parsed = regex_syntax::parse(class).expect("a fixed class");
            let HirKind::Class(Class::Unicode(ranges)) = parsed.kind() else {
                unreachable!("{class} is a class of characters");
            };
            for range in ranges.iter() {
                flat[range.start() as usize..=range.end() as usize].fill(kind);
            }
        }
        let mut kinds = Kinds { block_of: Vec::new(), blocks: Vec::new() };
        for chunk in flat.chunks_exact(256) {
            let known = kinds.blocks.iter().position(|block| block == chunk);
            let index = known.unwrap_or_else(|| {
                kinds.blocks.push(chunk.try_into().expect("256 kinds"));
                kinds.blocks.len() - 1
            });
            kinds.block_of.push(index as u16);
        }
        kinds
    }

    /// Kind and width in bytes of the character at `at`; `None` at the end.
    #[inline]
    fn at(&self, text: &str, at: usize) -> Option<(Kind, usize)> {
        let byte = *text.as_bytes().get(at)?;
        if byte < 0x80 {
            return Some((self.blocks[usize::from(self.block_of[0])][usize::from(byte)], 1));
        }
        let character = text[at..].chars().next()?;
        let code = character as usize;
        let block = &self.blocks[usize::from(self.block_of[code >> 8])];
        Some((block[code & 0xff], character.len_utf8()))
    }

    /// Where the run of `kind` that covers `at` ends; `at` itself if there is none.
    #[inline]
    fn run(&self, text: &str, mut at: usize, kind: Kind) -> usize {
        while let Some((found, width)) = self.at(text, at) {
            if found != kind {
                break;
            }
            at += width;
        }
        at
    }

    /// Where the word that starts at `start` ends; `start` is not the end of the text.
    fn word_end(&self, text: &str, start: usize) -> usize {
        let (kind, width) = self.at(text, start).expect("a character");
        let after = start + width;
        match kind {
            Kind::Letter => self.run(text, after, Kind::Letter),
            Kind::Number => match self.at(text, after) {
                Some((Kind::Number, second)) => after + second,
                _ => after,
            },
            Kind::Newline => self.blank_end(text, start),
            Kind::Space => match self.at(text, after) {
                Some((Kind::Letter, _)) => self.run(text, after, Kind::Letter),
                Some((Kind::Mark, _)) if text.as_bytes()[start] == b' ' => self.marks_end(text, after),
                _ => self.blank_end(text, start),
            },
            Kind::Mark => {
                if let Some(end) = contraction_end(text, start) {
                    return end;
                }
                match self.at(text, after) {
                    Some((Kind::Letter, _)) => self.run(text, after, Kind::Letter),
                    _ => self.marks_end(text, start),
                }
            }
        }
    }

    /// Marks and the line ends right behind them.
    fn marks_end(&self, text: &str, start: usize) -> usize {
        let end = self.run(text, start, Kind::Mark);
        self.run(text, end, Kind::Newline)
    }

    /// A run of white space: up to its last line end if it has one; else all of
    /// it but the last character, which belongs to the word that follows.
    fn blank_end(&self, text: &str, start: usize) -> usize {
        let (mut end, mut last, mut line_end) = (start, start, None);
        while let Some((kind, width)) = self.at(text, end) {
            match kind {
                Kind::Newline => line_end = Some(end + width),
                Kind::Space => {}
                _ => break,
            }
            last = end;
            end += width;
        }
        match line_end {
            Some(line_end) => line_end,
            None if end == text.len() || last == start => end,
            None => last,
        }
    }
}

/// The end of `'s`, `'ll` and the like, in any case. The long s (U+017F) folds to
/// `s`, and is the only character outside ASCII that folds to one of these letters.
fn contraction_end(text: &str, start: usize) -> Option<usize> {
    let rest = text.as_bytes()[start..].strip_prefix(b"'")?;
    let first = rest.first()?.to_ascii_lowercase();
    if matches!(first, b's' | b'd' | b'm' | b't') {
        return Some(start + 2);
    }
    if rest.starts_with("\u{17f}".as_bytes()) {
        return Some(start + 3);
    }
    let second = rest.get(1)?.to_ascii_lowercase();
    matches!([first, second], [b'l', b'l'] | [b'v', b'e'] | [b'r', b'e']).then_some(start + 3)
}

/// Cuts texts into words.
pub enum Splitter {
    /// The default pattern, by the hand-written scanner.
    Default,
    /// Any other pattern, by the regex library.
    Pattern(Box<Regex>),
}

impl Splitter {
    /// The splitter of `pattern`, or of the default pattern.
    ///
    /// # Errors
    /// A sentence, if `pattern` is no valid regular expression.
    pub fn new(pattern: Option<&str>) -> Result<Splitter, String> {
        match pattern {
            None | Some(SPLIT_PATTERN) => Ok(Splitter::Default),
            Some(other) => Splitter::by_regex(other),
        }
    }

    /// Like `new`, but always with the regex library; the reference in tests.
    ///
    /// # Errors
    /// A sentence, if `pattern` is no valid regular expression.
    pub fn by_regex(pattern: &str) -> Result<Splitter, String> {
        Regex::new(pattern)
            .map(|regex| Splitter::Pattern(Box::new(regex)))
            .map_err(|error| format!("the split pattern is not a valid regular expression: {error}"))
    }

    /// Calls `word` with each word of `text`, in order.
    ///
    /// # Errors
    /// A message, if the caller's pattern fails on this text.
    pub fn split<'t>(&self, text: &'t str, mut word: impl FnMut(&'t str)) -> Result<(), String> {
        match self {
            Splitter::Default => {
                let kinds = Kinds::get();
                let mut start = 0;
                while start < text.len() {
                    let end = kinds.word_end(text, start);
                    word(&text[start..end]);
                    start = end;
                }
            }
            Splitter::Pattern(regex) => {
                for found in regex.find_iter(text) {
                    let found = found.map_err(|error| format!("the split pattern fails on a text: {error}"))?;
                    if !found.as_str().is_empty() {
                        word(found.as_str());
                    }
                }
            }
        }
        Ok(())
    }
}

/// Counts words over many texts, batch by batch, on all cores.
pub struct WordCounter {
    splitter: Splitter,
    /// One table per thread, so that no lock is ever contended; summed at the end.
    tables: Vec<Mutex<Counts>>,
}

impl WordCounter {
    /// A new counter without words.
    #[must_use]
    pub fn new(splitter: Splitter) -> WordCounter {
        let threads = rayon::current_num_threads();
        let tables = (0..threads).map(|_| Mutex::default()).collect();
        WordCounter { splitter, tables }
    }

    /// Counts the words of `texts`.
    ///
    /// # Errors
    /// As `Splitter::split`; then the counts are unusable.
    pub fn add<T: AsRef<str> + Sync>(&self, texts: &[T]) -> Result<(), String> {
        texts.par_chunks(TEXTS_PER_STEP).try_for_each(|chunk| {
            let thread = rayon::current_thread_index().unwrap_or(0);
            let mut counts = self.tables[thread % self.tables.len()].lock().unwrap_or_else(PoisonError::into_inner);
            chunk.iter().try_for_each(|text| {
                self.splitter.split(text.as_ref(), |word| match counts.get_mut(word.as_bytes()) {
                    Some(count) => *count += 1,
                    None => {
                        counts.insert(word.as_bytes().into(), 1);
                    }
                })
            })
        })
    }

    /// All words with their counts: the most frequent first, equal ones in byte order.
    #[must_use]
    pub fn finish(self) -> Vec<(Box<[u8]>, u64)> {
        let mut tables =
            self.tables.into_iter().map(|table| table.into_inner().unwrap_or_else(PoisonError::into_inner));
        let mut sum = tables.next().unwrap_or_default();
        for table in tables {
            for (word, count) in table {
                *sum.entry(word).or_insert(0) += count;
            }
        }
        let mut words: Vec<_> = sum.into_iter().collect();
        words.par_sort_unstable_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
        words
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(splitter: &Splitter, text: &str) -> Vec<String> {
        let mut words = Vec::new();
        splitter.split(text, |word| words.push(word.to_owned())).unwrap();
        words
    }

    #[test]
    fn the_scanner_equals_the_pattern_on_every_short_text_of_telling_characters() {
        let alphabet =
            ['\'', 's', 'L', 'v', 'e', ' ', '\t', '\n', '\r', '1', '²', '!', 'é', '\u{17f}', '\u{85}', '\u{2028}'];
        let pattern = Splitter::by_regex(SPLIT_PATTERN).unwrap();
        for length in 1..=4_u32 {
            for mut number in 0..alphabet.len().pow(length) {
                let mut text = String::new();
                for _ in 0..length {
                    text.push(alphabet[number % alphabet.len()]);
                    number /= alphabet.len();
                }
                assert_eq!(split(&Splitter::Default, &text), split(&pattern, &text), "{text:?}");
            }
        }
    }

    #[test]
    fn the_scanner_equals_the_pattern_around_every_character() {
        let pattern = Splitter::by_regex(SPLIT_PATTERN).unwrap();
        for code in 0..0x11_0000_u32 {
            let Some(character) = char::from_u32(code) else { continue };
            let text = format!("a{character}b '{character}1 {character}{character}");
            assert_eq!(split(&Splitter::Default, &text), split(&pattern, &text), "U+{code:04X}");
        }
    }

    #[test]
    fn the_words_of_a_text_join_to_the_text() {
        let text = "We'LL  see:\t2026\u{2028}\r\n\n  ünïcödé 世界!?\n \n x  ";
        assert_eq!(split(&Splitter::Default, text).concat(), text);
    }

    #[test]
    fn words_come_out_by_count_and_then_by_bytes() {
        let counter = WordCounter::new(Splitter::Default);
        counter.add(&["b a", "a c"]).unwrap();
        counter.add(&[" a"]).unwrap();
        let found = counter.finish();
        let shown: Vec<_> = found.iter().map(|(word, n)| (std::str::from_utf8(word).unwrap(), *n)).collect();
        assert_eq!(shown, [(" a", 2), (" c", 1), ("a", 1), ("b", 1)]);
    }

    #[test]
    fn a_pattern_that_is_no_regular_expression_is_refused() {
        assert!(Splitter::new(Some("(")).is_err());
    }
}
