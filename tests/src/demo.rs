//! The demo: a chain, a real model behind three sellers at different prices, one buyer with its
//! endpoint, and the story of paid answers, told on a page and checked figure by figure.

pub mod watch;
pub mod ask;
pub mod stage;
pub mod books;
pub mod story;
