//! How hard to think, in OpenAI's word, for dialects that give a budget of tokens instead.

/// A budget up to this is a low effort.
const LITTLE: u64 = 2_048;
/// And up to this a medium one.
const SOME: u64 = 8_192;

/// The effort that a budget stands for.
pub(in crate::gateway) const fn of(budget: Option<u64>) -> &'static str {
    match budget {
        Some(tokens) if tokens <= LITTLE => "low",
        Some(tokens) if tokens > SOME => "high",
        _ => "medium",
    }
}
