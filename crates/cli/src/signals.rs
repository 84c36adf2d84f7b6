//! The signals that must not end the program on the spot.

/// Turns a limit on the size of files (`ulimit -f`) into an error of the write that meets it, "File too large", as a
/// full disk is one: by default the system kills the program, in the middle of a file.
#[cfg(unix)]
pub fn survive_file_size_limit() -> std::io::Result<()> {
    use std::sync::{Arc, atomic::AtomicBool};

    // Nobody reads the flag. That the signal has a handler is enough for the write to fail instead.
    signal_hook::flag::register(signal_hook::consts::SIGXFSZ, Arc::new(AtomicBool::new(false))).map(drop)
}

/// There are no such limits here.
#[cfg(not(unix))]
pub fn survive_file_size_limit() -> std::io::Result<()> {
    Ok(())
}
