//! Open files and sockets: how many this process may have.
//!
//! Every application, peer and model server that is connected takes one. Systems start programs
//! with a small number, often 1 024, and let them ask for more: [`raise`] does. It is a door to the
//! system and knows nothing of who needs how many.

use std::io;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// More than any program of ours opens; some systems have no limit at all.
const MOST: u64 = 1 << 20;

/// There are fewer than a program needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "{have} files and sockets may be open at once, {need} may be needed: raise the limit \
     (`ulimit -n {need}`, or LimitNOFILE={need} in a systemd unit)"
)]
pub struct TooFew {
    /// What may be open.
    pub have: u64,
    /// What may be needed.
    pub need: u64,
}

/// Lets this process have as many open as the system allows it; returns how many that is.
///
/// # Errors
/// When the system refuses; what was allowed before still is.
pub fn raise() -> io::Result<u64> {
    let limit = getrlimit(Resource::Nofile);
    let most = limit.maximum.map_or(MOST, |maximum| maximum.min(MOST));
    let now = limit.current.unwrap_or(u64::MAX);
    if now >= most {
        return Ok(now);
    }
    let raised = Rlimit {
        current: Some(most),
        maximum: limit.maximum,
    };
    setrlimit(Resource::Nofile, raised)?;
    Ok(most)
}

/// Raises the limit, and says so when it is still below `need`.
///
/// # Errors
/// [`TooFew`].
pub fn need(need: u64) -> Result<(), TooFew> {
    let have = raise().unwrap_or_else(|error| {
        tracing::debug!(%error, "the limit of open files stays as it is");
        getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
    });
    if have < need {
        return Err(TooFew { have, need });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_system_allows_is_taken_and_what_it_does_not_is_named() {
        let have = raise().expect("may be raised");
        let limit = getrlimit(Resource::Nofile);
        assert_eq!(limit.current, Some(have));
        assert!(limit.maximum.is_none_or(|most| have == most.min(MOST)));
        assert_eq!(need(have), Ok(()));
        let need = have + 1;
        assert_eq!(super::need(need), Err(TooFew { have, need }));
        assert!(TooFew { have, need }.to_string().contains("LimitNOFILE="));
    }
}
