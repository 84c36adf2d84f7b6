//! How much a client may ask for, or hold.

use std::time::Duration;

/// The longest body of a request, in bytes.
pub const BODY_BYTES: usize = 1 << 20;
/// The longest head of a request, in bytes; beyond it, the answer is 431.
pub const HEAD_BYTES: usize = 64 << 10;
/// The longest that the head of a request may take to come. A connection without a request is closed after it as well.
pub const HEAD_SECONDS: Duration = Duration::from_secs(10);
/// The longest body that is read between other requests, in bytes: its tokens take a fraction of a millisecond.
pub const READ_AT_ONCE: usize = 4 << 10;
/// The longest that the body of a request may take to come.
pub const BODY_SECONDS: Duration = Duration::from_secs(20);
/// A client that takes nothing of its answer for this long is given up.
pub const WRITE_SECONDS: Duration = Duration::from_secs(30);
/// Connections at a time. Others wait until one closes.
pub const CONNECTIONS: usize = 512;
/// The longest prompt, in tokens.
pub const PROMPT_TOKENS: usize = 1 << 16;
/// The longest text, in tokens.
pub const MAX_TOKENS: usize = 1 << 16;
/// Of the most probable tokens, how many a client may be told beside each token.
pub const TOP_LOGPROBS: usize = 20;
/// How many strings may end a text.
pub const STOPS: usize = 4;
/// Grammars that are read at a time; others wait for their turn.
pub const GRAMMARS: usize = 2;
/// The longest answer that is told as a whole: tokens of all its texts, each counted again for every probability beside it.
pub const WHOLE_ANSWER: usize = 1 << 20;
/// The longest prompts whose own log-probabilities are told, in tokens of all prompts: each takes a computation of its own.
pub const ECHOED_LOGPROBS: usize = 512;
