//! The seller's HTTP door and the buyer that pays at others' doors: x402, with stock clients.

#![allow(
    clippy::disallowed_methods,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test may ask plainly, and says what it saw"
)]

mod attacks;
mod buyer;
mod clients;
mod clock;
mod deaths;
mod door;
mod limits;
mod once;
mod single;
mod sold;
