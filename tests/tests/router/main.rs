//! What the router makes of a network that misbehaves: faults, liars, weather, and a simulated
//! market.

#![allow(
    clippy::disallowed_methods,
    clippy::panic,
    reason = "a test may ask plainly, and says what it saw"
)]

mod reputation;
mod scenarios;
mod sim;
mod sky;
