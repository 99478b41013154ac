//! The gateway as applications meet it: every dialect, stock clients and their makers' own suites,
//! model servers behind it, real ones among them.

#![allow(
    clippy::disallowed_methods,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test may ask plainly, and says what it saw"
)]

mod frameworks;
mod llama_sellers;
mod mcp;
mod openapi;
mod openrouter;
mod own_upstream;
mod passthrough;
mod rescue_llama;
mod routes;
mod stock_clients;
mod stock_suites;
