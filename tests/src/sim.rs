//! A world of sellers in virtual time, to see what ways of choosing come to: the client's own
//! router and market, and how others do it, against an oracle.
//!
//! The same seed gives the same world and the same figures, whatever the machine does. Only how
//! long a choice takes is measured in real time, and stands apart.

pub mod dice;
pub mod workload;
pub mod seller;
pub mod world;
pub mod shop;
pub mod chooser;
pub mod oracle;
pub mod router;
pub mod baselines;
pub mod ways;
pub mod figures;
pub mod run;
pub mod plot;
pub mod report;
pub mod pace;
