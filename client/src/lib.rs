//! The buyer: SDK, router and a local OpenAI-compatible gateway.
//!
//! The order of the modules is the order of the floors: each uses only what stands above it.
//! [`client::Client`] is the SDK, and the gateway stands on it like any other program.

pub mod config;
pub mod metrics;
pub mod report;
pub mod ledger;
pub mod receipts;
pub mod keeper;
pub mod wallet;
pub mod channels;
pub mod policy;
pub mod market;
pub mod reputation;
pub mod router;
pub mod purchase;
pub mod client;
pub mod gateway;
pub mod cli;
