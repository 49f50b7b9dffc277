//! Trains byte-pair encodings: texts in, mergeable ranks out.
//!
//! `words` splits texts into words and counts them on all cores; `train` computes
//! the merges from the counts; `python` has the Python bindings and exists only
//! with the feature of that name. tiktoken encodes and decodes; the special
//! tokens are defined in Python.

#[cfg(feature = "python")]
mod python;
pub mod train;
pub mod words;
