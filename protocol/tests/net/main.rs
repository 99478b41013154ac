//! The network as its users see it, on loopback and under a sky of its own.

#![allow(clippy::unwrap_used, reason = "a failed test says where")]

mod echo;
mod exchange;
mod idle;
mod many_streams;
mod parties;
mod quic_loss;
mod relay;
mod routes;
mod sky;
