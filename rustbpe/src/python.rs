//! The Python bindings: `rustbpe.train`, `rustbpe.split`, `SPLIT_PATTERN`.
//!
//! Texts are copied from Python in batches and counted without the GIL, so only
//! one batch and the distinct words are in memory, never the whole corpus. Ctrl-C
//! is checked between batches and, during the merges, ten times a second.

use std::mem;
use std::time::{Duration, Instant};

use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyString};

use crate::train::{train as train_merges, TrainError};
use crate::words::{Splitter, WordCounter, SPLIT_PATTERN};

/// Bytes of text per batch.
const BATCH_BYTES: usize = 16 << 20;
/// Interval between two checks for Ctrl-C.
const SIGNALS_EVERY: Duration = Duration::from_millis(100);
const LARGEST_VOCABULARY: i64 = 1 << 30;

fn splitter(pattern: Option<&str>) -> PyResult<Splitter> {
    Splitter::new(pattern).map_err(PyValueError::new_err)
}

/// A Python string as UTF-8, or an error that says which text is unusable.
fn text_of(item: &Bound<'_, PyAny>, number: usize) -> PyResult<String> {
    let text = item.cast::<PyString>().map_err(|_| {
        let kind = item.get_type();
        PyTypeError::new_err(format!("texts must yield str, but text {number} is of {kind}"))
    })?;
    text.to_str()
        .map(str::to_owned)
        .map_err(|_| PyValueError::new_err(format!("text {number} holds a lone surrogate and has no UTF-8 form")))
}

fn count(py: Python<'_>, counter: &WordCounter, texts: &Bound<'_, PyAny>) -> PyResult<()> {
    let (mut batch, mut bytes) = (Vec::new(), 0);
    for (number, item) in texts.try_iter()?.enumerate() {
        let text = text_of(&item?, number)?;
        bytes += text.len();
        batch.push(text);
        if bytes >= BATCH_BYTES {
            py.detach(|| counter.add(&batch)).map_err(PyValueError::new_err)?;
            py.check_signals()?;
            batch.clear();
            bytes = 0;
        }
    }
    py.detach(|| counter.add(&mem::take(&mut batch))).map_err(PyValueError::new_err)
}

/// Mergeable ranks of a byte-pair encoding: `[(bytes, rank), ...]`, the 256 single
/// bytes first, then the merges in order.
///
/// `texts` is iterated once; `vocab_size` counts the 256 bytes. Fewer ranks come
/// back when the texts have no pair left to join. Equally frequent pairs: the
/// smaller (left id, right id) first.
///
/// Raises ValueError for a `vocab_size` below 256, a `pattern` that is no regular
/// expression or a text without UTF-8 form; TypeError if `texts` is a str or
/// yields anything but str.
#[pyfunction]
#[pyo3(signature = (texts, vocab_size, pattern = None))]
fn train<'py>(
    py: Python<'py>,
    texts: &Bound<'py, PyAny>,
    vocab_size: i64,
    pattern: Option<&str>,
) -> PyResult<Vec<(Bound<'py, PyBytes>, u32)>> {
    if !(256..=LARGEST_VOCABULARY).contains(&vocab_size) {
        let range = format!("at least 256 (one per byte) and at most {LARGEST_VOCABULARY}");
        return Err(PyValueError::new_err(format!("vocab_size must be {range}, not {vocab_size}")));
    }
    if texts.is_instance_of::<PyString>() {
        return Err(PyTypeError::new_err("texts must be an iterable of str, not one str"));
    }
    let counter = WordCounter::new(splitter(pattern)?);
    count(py, &counter, texts)?;
    let mut interrupt = None;
    let tokens = py.detach(|| {
        let mut looked = Instant::now();
        train_merges(&counter.finish(), vocab_size as usize - 256, || {
            if looked.elapsed() >= SIGNALS_EVERY {
                looked = Instant::now();
                interrupt = Python::attach(|py| py.check_signals()).err();
            }
            interrupt.is_none()
        })
    });
    match tokens {
        Ok(tokens) => {
            let ranked = tokens.iter().zip(0_u32..);
            Ok(ranked.map(|(token, rank)| (PyBytes::new(py, token), rank)).collect())
        }
        Err(TrainError::TooLarge) => {
            Err(PyValueError::new_err("the distinct words of the texts exceed 4 GB; train on fewer texts"))
        }
        Err(TrainError::Stopped) => Err(interrupt.expect("only an interrupt stops training")),
    }
}

/// The words of `text`: the pieces that merges never cross.
///
/// Raises ValueError for a `pattern` that is no regular expression or fails on `text`.
#[pyfunction]
#[pyo3(signature = (text, pattern = None))]
fn split(py: Python<'_>, text: &Bound<'_, PyString>, pattern: Option<&str>) -> PyResult<Vec<String>> {
    let (splitter, text) = (splitter(pattern)?, text_of(text, 0)?);
    let words = py.detach(|| {
        let mut words = Vec::new();
        splitter.split(&text, |word| words.push(word.to_owned())).map(|()| words)
    });
    words.map_err(PyValueError::new_err)
}

#[pymodule]
fn _rustbpe(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("SPLIT_PATTERN", SPLIT_PATTERN)?;
    module.add_function(wrap_pyfunction!(train, module)?)?;
    module.add_function(wrap_pyfunction!(split, module)?)
}
