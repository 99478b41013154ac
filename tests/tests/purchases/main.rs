//! Purchases between our own programs: paid for, broken off, crashed, lied about, and settled.

#![allow(
    clippy::disallowed_methods,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test may ask plainly, and says what it saw"
)]

mod chain_away;
mod failure;
mod hangup;
mod liar;
mod lines;
mod payment;
mod pruning;
mod purchase;
mod receipts;
mod restart;
mod roots;
mod slow_reader;
mod spend;
mod together;
mod wallet;
