//! Computes the merges from counted words.
//!
//! Starts with the 256 single bytes and repeatedly joins the most frequent pair of
//! neighbours; of equally frequent pairs, the one with the smaller (left id, right
//! id). Overlapping pairs all count (`aaa` has `aa` twice), and a merge processes a
//! word from left to right. The result depends only on the counts, not on threads,
//! batches or order.
//!
//! All words are stored one after the other in one array, one slot per byte. The
//! first and the last slot of a token contain its id, so both neighbours of a token
//! are found from the lengths of tokens, without links, and merging one occurrence
//! costs the same in a word of any length.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::mem;

use rustc_hash::FxHashMap;

/// Separator between two words.
const WALL: u32 = u32::MAX;
/// The first slot of a token that was joined to the one on its left.
const GONE: u32 = u32::MAX - 1;

/// Why training ended without a result.
#[derive(Debug, PartialEq, Eq)]
pub enum TrainError {
    /// The total length of the distinct words exceeds 32-bit positions.
    TooLarge,
    /// The caller asked to stop.
    Stopped,
}

/// Two ids in one number that sorts like (left, right).
fn pair(left: u32, right: u32) -> u64 {
    u64::from(left) << 32 | u64::from(right)
}

/// Where a pair occurs, and how often, counted over all texts.
#[derive(Default)]
struct Occurrences {
    count: u64,
    /// Slots of the left token, ascending; slots that have changed since are skipped.
    places: Vec<u32>,
}

struct Corpus {
    slots: Vec<u32>,
    /// (first slot, count): from this slot on every word occurs `count` times.
    runs: Vec<(u32, u64)>,
    /// The bytes of each id.
    tokens: Vec<Vec<u8>>,
    index: FxHashMap<u64, u32>,
    pairs: Vec<Occurrences>,
}

impl Corpus {
    fn new(words: &[(Box<[u8]>, u64)]) -> Result<Corpus, TrainError> {
        // A word of one byte has no pair; leaving it out changes nothing.
        let words = || words.iter().filter(|(word, count)| word.len() > 1 && *count > 0);
        let size = 1 + words().map(|(word, _)| word.len() + 1).sum::<usize>();
        if size >= GONE as usize {
            return Err(TrainError::TooLarge);
        }
        let mut slots = Vec::with_capacity(size);
        slots.push(WALL);
        let mut runs: Vec<(u32, u64)> = Vec::new();
        for (word, count) in words() {
            if runs.last().is_none_or(|(_, last)| last != count) {
                runs.push((slots.len() as u32, *count));
            }
            slots.extend(word.iter().map(|byte| u32::from(*byte)));
            slots.push(WALL);
        }
        let tokens = (0..=255).map(|byte| vec![byte]).collect();
        let (index, pairs) = (FxHashMap::default(), Vec::new());
        let mut corpus = Corpus { slots, runs, tokens, index, pairs };
        corpus.find_pairs();
        Ok(corpus)
    }

    fn find_pairs(&mut self) {
        let mut found: Vec<Occurrences> = Vec::new();
        found.resize_with(256 * 256, Occurrences::default);
        let mut run = 0;
        for at in 1..self.slots.len().saturating_sub(1) {
            while run + 1 < self.runs.len() && self.runs[run + 1].0 as usize <= at {
                run += 1;
            }
            let (left, right) = (self.slots[at], self.slots[at + 1]);
            if left != WALL && right != WALL {
                let entry = &mut found[(left << 8 | right) as usize];
                entry.count += self.runs[run].1;
                entry.places.push(at as u32);
            }
        }
        for (bytes, occurrences) in (0_u32..).zip(found) {
            if occurrences.count > 0 {
                self.index.insert(pair(bytes >> 8, bytes & 0xff), self.pairs.len() as u32);
                self.pairs.push(occurrences);
            }
        }
    }

    /// How often the word around slot `at` occurs.
    fn count_at(&self, at: u32) -> u64 {
        self.runs[self.runs.partition_point(|(first, _)| *first <= at) - 1].1
    }

    fn length(&self, id: u32) -> u32 {
        self.tokens[id as usize].len() as u32
    }

    fn count_of(&self, key: u64) -> u64 {
        self.index.get(&key).map_or(0, |entry| self.pairs[*entry as usize].count)
    }

    fn lose(&mut self, left: u32, right: u32, count: u64) {
        let entry = self.index[&pair(left, right)] as usize;
        let occurrences = &mut self.pairs[entry];
        occurrences.count -= count;
        if occurrences.count == 0 {
            occurrences.places = Vec::new();
        }
    }

    fn gain(&mut self, left: u32, right: u32, at: u32, count: u64, born: &mut Vec<u64>) {
        let key = pair(left, right);
        let entry = *self.index.entry(key).or_insert_with(|| {
            born.push(key);
            self.pairs.push(Occurrences::default());
            (self.pairs.len() - 1) as u32
        });
        let occurrences = &mut self.pairs[entry as usize];
        occurrences.count += count;
        occurrences.places.push(at);
    }

    /// Joins every occurrence of a pair to a new token; returns the new pairs.
    fn merge(&mut self, key: u64) -> Vec<u64> {
        let (left, right) = ((key >> 32) as u32, key as u32);
        let (new, width) = (self.tokens.len() as u32, self.length(left));
        self.tokens.push([&self.tokens[left as usize][..], &self.tokens[right as usize]].concat());
        let (rest, total) = (self.length(right), self.length(new));
        let places = mem::take(&mut self.pairs[self.index[&key] as usize].places);
        let mut born = Vec::new();
        for at in places {
            let middle = at + width;
            // An id in a slot that is not the first of a token can never equal
            // `left` here: a first slot that is lost turns GONE or, for a token of
            // one byte, takes the id of a longer one.
            if self.slots[at as usize] != left || self.slots[middle as usize] != right {
                continue;
            }
            let count = self.count_at(at);
            let (before, after) = (self.slots[at as usize - 1], self.slots[(at + total) as usize]);
            self.lose(left, right, count);
            if before != WALL {
                self.lose(before, left, count);
                self.gain(before, new, at - self.length(before), count, &mut born);
            }
            if after != WALL {
                self.lose(right, after, count);
                self.gain(new, after, at, count, &mut born);
            }
            self.slots[at as usize] = new;
            if rest > 1 {
                self.slots[middle as usize] = GONE;
            }
            self.slots[(at + total - 1) as usize] = new;
        }
        debug_assert_eq!(self.count_of(key), 0);
        born
    }
}

/// The tokens in the order of their ids: 256 bytes, then up to `merges` merges.
///
/// Returns fewer merges if no pair is left. `words` are distinct, the most frequent
/// first (`WordCounter::finish`). `go_on` is called before each merge.
///
/// # Errors
/// `TooLarge` beyond 4 GB of distinct words; `Stopped` if `go_on` returns false.
pub fn train(
    words: &[(Box<[u8]>, u64)],
    merges: usize,
    mut go_on: impl FnMut() -> bool,
) -> Result<Vec<Vec<u8>>, TrainError> {
    let mut corpus = Corpus::new(words)?;
    // Counts in the heap may be too high, but never too low: a pair first occurs in the
    // merge that creates the newer of its two tokens, and its count only decreases later.
    let mut heap: BinaryHeap<(u64, Reverse<u64>)> =
        corpus.index.keys().map(|key| (corpus.count_of(*key), Reverse(*key))).collect();
    while corpus.tokens.len() < 256 + merges {
        let Some((count, Reverse(key))) = heap.pop() else { break };
        let now = corpus.count_of(key);
        if now < count {
            if now > 0 {
                heap.push((now, Reverse(key)));
            }
            continue;
        }
        if !go_on() {
            return Err(TrainError::Stopped);
        }
        for key in corpus.merge(key) {
            let count = corpus.count_of(key);
            if count > 0 {
                heap.push((count, Reverse(key)));
            }
        }
    }
    Ok(corpus.tokens)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn merges(words: &[(&str, u64)], wanted: usize) -> Vec<String> {
        let words: Vec<_> = words.iter().map(|(word, count)| (word.as_bytes().into(), *count)).collect();
        let tokens = train(&words, wanted, || true).unwrap();
        tokens[256..].iter().map(|token| String::from_utf8(token.clone()).unwrap()).collect()
    }

    #[test]
    fn the_most_frequent_pair_is_joined_first() {
        assert_eq!(merges(&[("hug", 10), ("pun", 12), ("bun", 4)], 2), ["un", "pun"]);
    }

    #[test]
    fn of_equally_frequent_pairs_the_smaller_one_is_joined_first() {
        assert_eq!(merges(&[("dc", 1), ("ab", 1), ("ac", 1)], 3), ["ab", "ac", "dc"]);
    }

    #[test]
    fn a_run_of_one_byte_is_joined_from_the_left() {
        assert_eq!(merges(&[("aaaaaaa", 1)], 9), ["aa", "aaaa", "aaa", "aaaaaaa"]);
    }

    #[test]
    fn training_ends_early_when_no_pair_is_left() {
        assert_eq!(merges(&[("ab", 3), ("c", 9)], 100), ["ab"]);
        assert!(merges(&[], 100).is_empty());
    }

    #[test]
    fn training_stops_when_asked_to() {
        let words = [(b"abc".as_slice().into(), 1)];
        assert_eq!(train(&words, 5, || false), Err(TrainError::Stopped));
    }
}
