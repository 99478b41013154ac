//! How others choose, written from their public descriptions (facts and sources in the project's
//! notes on gateways and networks; nothing is copied).
//!
//! Each gets what the router gets: the same tries, deadlines and continued streams. Where a
//! description is of something that is not inference, the file says how it was carried over.

pub mod latency;
pub mod plain;
pub mod price;
