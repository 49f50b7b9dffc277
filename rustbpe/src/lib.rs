//! Trains byte-pair encodings: texts in, mergeable ranks out.
//!
//! `words` cuts texts into words and counts them on all cores; `train` turns
//! counted words into merges; `python` is the face towards Python and exists
//! only with the feature of that name. Encoding and decoding are not done here
//! (tiktoken does them), and neither are special tokens.

#[cfg(feature = "python")]
mod python;
pub mod train;
pub mod words;
