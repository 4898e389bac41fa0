//! Log lines that strangers can cause, at a bounded rate.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Lines in one [`WINDOW`]; more are counted only.
const LINES_MAX: u32 = 10;
const WINDOW: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
pub struct Sparse(Mutex<Window>);

#[derive(Debug, Default)]
struct Window {
    lines: u32,
    start: Option<Instant>,
    suppressed: u64,
}

impl Sparse {
    pub const fn new() -> Sparse {
        Sparse(Mutex::new(Window { lines: 0, start: None, suppressed: 0 }))
    }

    /// Some when a line may be written now, with the number of those left out before it.
    pub fn line(&self) -> Option<u64> {
        let mut window = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if window.start.is_none_or(|start| start.elapsed() >= WINDOW) {
            (window.start, window.lines) = (Some(Instant::now()), 0);
        }
        if window.lines >= LINES_MAX {
            window.suppressed += 1;
            return None;
        }
        window.lines += 1;
        Some(std::mem::take(&mut window.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_cut_and_counted() {
        let sparse = Sparse::default();
        let written = (0..1000).filter(|_| sparse.line().is_some()).count();
        assert!(written < 1000 && written >= LINES_MAX as usize, "{written}");
        // As if the window had passed.
        sparse.0.lock().unwrap().start = None;
        assert!(sparse.line().unwrap() > 0);
    }
}
