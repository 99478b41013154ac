//! What two strangers must agree on to buy and sell inference: words, bytes, signatures and
//! rules. No I/O unless a feature asks for it.
//!
//! The order of the modules is the order of the floors: each uses only what stands above it.
//!
//! | floor | modules | promises |
//! |---|---|---|
//! | words | [`amount`], [`clock`] | integers and time, nothing hidden |
//! | ink | [`codec`], [`identity`], [`eip712`] | bytes and signatures, one form each |
//! | sentences | [`x402`], [`voucher`], [`payment`], [`root`], [`body`], [`offer`], [`purchase`], [`receipt`], [`testimony`], [`frame`] | every message that crosses the wire |
//! | grammar | [`pricing`], [`channel`], [`merkle`], [`history`], [`evidence`], [`book`], [`roll`] | pure rules both sides obey |
//! | doors | `store`, `retention`, `keystore`, `chain`, `descriptors`, `net`, `grapevine` | disk, chain, network and what the system allows, each behind a feature |

// words
pub mod amount;
pub mod clock;
// ink
pub mod codec;
pub mod identity;
pub mod eip712;
// sentences
pub mod x402;
pub mod voucher;
pub mod payment;
pub mod root;
pub mod body;
pub mod offer;
pub mod purchase;
pub mod receipt;
pub mod testimony;
pub mod frame;
// grammar
pub mod pricing;
pub mod channel;
pub mod merkle;
pub mod history;
pub mod evidence;
pub mod book;
pub mod roll;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
// doors
#[cfg(feature = "store")]
pub mod store;
#[cfg(feature = "store")]
pub mod retention;
#[cfg(feature = "store")]
pub mod keystore;
#[cfg(feature = "chain")]
pub mod chain;
#[cfg(feature = "net")]
pub mod descriptors;
#[cfg(feature = "net")]
pub mod net;
#[cfg(all(feature = "chain", feature = "net"))]
pub mod grapevine;
