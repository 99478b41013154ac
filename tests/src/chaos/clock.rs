//! The clock of a program under test: the machine's, wrong by what comes in on standard input.

use std::io::BufRead;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use farthing_protocol::clock::Clock;

/// A clock that is wrong by as many milliseconds as the last line of standard input says. The
/// thread that listens ends with the input.
#[must_use]
pub fn by_orders() -> Clock {
    let millis = Arc::new(AtomicI64::new(0));
    let hands = Arc::clone(&millis);
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines() {
            let Ok(line) = line else { return };
            if let Ok(wrong) = line.trim().parse() {
                hands.store(wrong, Ordering::SeqCst);
            }
        }
    });
    Clock::wrong_by(millis)
}
