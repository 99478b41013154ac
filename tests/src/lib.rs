//! The street: sellers, buyers, a chain and model servers as values, for end-to-end tests,
//! the demo, the development network and the benches.

#![cfg_attr(
    test,
    allow(clippy::disallowed_methods, reason = "a test may ask plainly")
)]

pub mod section;
pub mod clients;
pub mod sim;
pub mod upstream;
pub mod llama;
pub mod street;
pub mod chaos;
pub mod show;
pub mod demo;
pub mod bench;
pub mod crowd;
pub mod gas;
