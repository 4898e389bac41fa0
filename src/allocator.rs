//! The program's memory comes from jemalloc, which gives a burst back to the system; glibc kept nearly all of it (measured in
//! docs/performance.md). Only this program chooses: the library and its tests have what they are linked with.

/// How long memory that nobody uses any more waits for a new use, milliseconds.
#[cfg(not(target_env = "msvc"))]
const UNUSED_FOR: isize = 500;

#[cfg(not(target_env = "msvc"))]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Lets unused memory go back after [`UNUSED_FOR`], also when nothing is allocated any more, which takes threads of the
/// allocator's own. Set here and not while jemalloc is built, because an environment variable for its build is easily forgotten.
///
/// # Errors
///
/// Names the setting that jemalloc did not take; then it uses its own: ten seconds, and only while memory is asked for.
#[cfg(not(target_env = "msvc"))]
pub(crate) fn give_back() -> Result<(), String> {
    use tikv_jemalloc_ctl::{Access, AsName, background_thread};

    // The first is for memory that new threads will have, the second for that of the only one there is.
    for name in ["arenas.dirty_decay_ms\0", "arena.0.dirty_decay_ms\0"] {
        name.name().write(UNUSED_FOR).map_err(|error| format!("{}: {error}", name.trim_end_matches('\0')))?;
    }
    // jemalloc's threads need glibc; with musl unused memory goes back while other memory is asked for.
    if cfg!(not(target_env = "musl")) {
        background_thread::write(true).map_err(|error| format!("background_thread: {error}"))?;
    }
    Ok(())
}

#[cfg(target_env = "msvc")]
pub(crate) fn give_back() -> Result<(), String> {
    Ok(())
}
