//! The seller: a node that sells inference from a model server it can reach.
//!
//! The order of the modules is the order of the floors: each uses only what stands above it.
//! A purchase walks through [`serve`]: [`admission`] → [`upstream`] → [`meter`] → [`ledger`].

pub mod config;
pub mod metrics;
pub mod upstream;
pub mod meter;
pub mod ledger;
pub mod catalog;
pub mod shelf;
pub mod shop;
pub mod keeper;
pub mod roots;
pub mod admission;
pub mod serve;
pub mod settlement;
pub mod calls;
pub mod http;
pub mod announce;
pub mod report;
pub mod node;
pub mod control;
pub mod cli;
