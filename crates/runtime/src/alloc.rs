//! A global allocator that wipes memory when it is freed.
//!
//! Wiping our own copies is not enough. In a proxy that wiped every copy of its own, all 33 of 33
//! eight-byte windows of a 48-byte credential were still in freed buffers of hyper, `http` and
//! rustls. With this allocator, none was.
//!
//! ```
//! #[global_allocator]
//! static ALLOCATOR: seks_runtime::alloc::Allocator = seks_runtime::alloc::Allocator::new();
//! ```
#![expect(unsafe_code, reason = "the one reviewed module with unsafe: `GlobalAlloc` is an unsafe trait")]

#[cfg(target_os = "linux")]
use std::ffi::{c_int, c_long};
use std::{
    alloc::{GlobalAlloc, Layout},
    cell::Cell,
    ptr,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

/// The allocator of every SEKS binary that holds keys.
pub type Allocator = Wiping<Mimalloc>;

/// mimalloc. The crate of that name passes an alignment with every request, which is slower for
/// nearly every block.
pub struct Mimalloc;

/// Alignment of every mimalloc block of at least this size, in bytes (`MI_MAX_ALIGN_SIZE`).
const ALIGNED: usize = 16;

impl Mimalloc {
    fn is_aligned(layout: Layout) -> bool {
        layout.align() <= ALIGNED && layout.align() <= layout.size()
    }
}

// SAFETY: blocks have the requested size and alignment. `mi_malloc` aligns blocks of 16 bytes or
// more to 16, and smaller ones to the power of two of their size. For larger alignments
// `mi_malloc_aligned` is called. Failure is null. Any block of mimalloc may be passed to `mi_free`.
unsafe impl GlobalAlloc for Mimalloc {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: both take any size, and the alignment is a power of two.
        let block = unsafe {
            match Self::is_aligned(layout) {
                true => libmimalloc_sys::mi_malloc(layout.size()),
                false => libmimalloc_sys::mi_malloc_aligned(layout.size(), layout.align()),
            }
        };
        block.cast()
    }

    #[inline]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as in `alloc`.
        unsafe { libmimalloc_sys::mi_zalloc_aligned(layout.size(), layout.align()).cast() }
    }

    #[inline]
    unsafe fn dealloc(&self, block: *mut u8, _: Layout) {
        // SAFETY: the caller gives up a block that came from here.
        unsafe { libmimalloc_sys::mi_free(block.cast()) }
    }
}

/// How long freed memory is kept before the system gets it back, in milliseconds. Records are
/// exported and uploaded several times a second. A delay below that interval costs a page fault for
/// each page of those buffers, each time: 5 % of a busy node's time with 100 ms.
#[cfg(target_os = "linux")]
const PURGE_DELAY_MS: c_long = 1000;

/// `mi_option_purge_delay` of mimalloc.h.
#[cfg(target_os = "linux")]
const MI_OPTION_PURGE_DELAY: c_int = 15;

// Of mimalloc.h. `libmimalloc-sys` declares them behind a feature that needs a further crate.
unsafe extern "C" {
    fn mi_collect(force: bool);
    #[cfg(target_os = "linux")]
    fn mi_option_set(option: c_int, value: c_long);
    #[cfg(all(test, target_os = "linux"))]
    fn mi_option_get(option: c_int) -> c_long;
}

/// Keeps the resident memory of a process near what it uses. For processes that run for long; call
/// it first in `main`.
///
/// mimalloc asks for huge pages wherever the system allows that, so each 2 MiB of which a byte is
/// used is resident: 35 of the 44 MiB of an idle node. Page tables of such a process are small
/// enough without. Programs that this process starts inherit the setting, so a process that runs
/// other programs does not call this.
#[cfg(target_os = "linux")]
pub fn keep_memory_small() {
    // SAFETY: both calls take numbers only, and neither touches memory of the caller. A kernel
    // without the setting refuses it, which is harmless.
    unsafe {
        libc::prctl(libc::PR_SET_THP_DISABLE, 1, 0, 0, 0);
        mi_option_set(MI_OPTION_PURGE_DELAY, PURGE_DELAY_MS);
    }
}

/// There is nothing to set outside of Linux.
#[cfg(not(target_os = "linux"))]
pub fn keep_memory_small() {}

/// Gives memory that the current thread has freed back to the system. For threads that need much
/// for a moment.
pub fn release_freed_memory() {
    // SAFETY: no memory that is in use is touched.
    unsafe { mi_collect(true) };
}

/// Passes allocations to `A`, and overwrites every block with zeros before `A` frees it.
///
/// Costs one `memset` of the block's size for each free, and a copy where `A` could have grown a
/// block in place.
pub struct Wiping<A>(A);

impl Allocator {
    /// A wiping mimalloc.
    #[must_use]
    pub const fn new() -> Self {
        Self(Mimalloc)
    }
}

impl Default for Allocator {
    fn default() -> Self {
        Self::new()
    }
}

impl<A> Wiping<A> {
    /// Wraps any allocator.
    #[must_use]
    pub const fn over(inner: A) -> Self {
        Self(inner)
    }
}

// SAFETY: every pointer and layout is passed to `A` as it came, so `A`'s own guarantees carry over.
// `dealloc` and `realloc` write only to the block that the caller gives up, and only within its
// layout, which the caller guarantees to be the one it was allocated with.
unsafe impl<A: GlobalAlloc> GlobalAlloc for Wiping<A> {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's obligations are `A`'s.
        unsafe { self.0.alloc(layout) }
    }

    #[inline]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's obligations are `A`'s.
        unsafe { self.0.alloc_zeroed(layout) }
    }

    #[inline]
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller gives up `block`, which is `layout.size()` bytes long and not used by
        // anyone else.
        unsafe {
            wipe(block, layout.size());
            self.0.dealloc(block, layout);
        }
    }

    /// Always moves. `A::realloc` would free the old block, or the tail of a shrunk one, without
    /// wiping.
    #[inline]
    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: the caller guarantees that `new_size` isn't zero and doesn't overflow `isize`
        // when rounded up to the alignment, which is what a valid layout is. The blocks are
        // distinct, and the copy fits in both. On failure the old block stays untouched, as the
        // trait asks.
        unsafe {
            let moved = self.0.alloc(Layout::from_size_align_unchecked(new_size, layout.align()));
            if !moved.is_null() {
                ptr::copy_nonoverlapping(block, moved, layout.size().min(new_size));
                self.dealloc(block, layout);
            }
            moved
        }
    }
}

/// Counts the allocations of threads that ask for it, for tests that a request does not need more
/// of them.
pub struct Counting<A>(A);

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

thread_local! {
    static IS_COUNTED: Cell<bool> = const { Cell::new(false) };
}

impl Counting<Allocator> {
    /// Counts what a wiping mimalloc allocates.
    #[must_use]
    pub const fn new() -> Self {
        Self(Allocator::new())
    }

    /// Counts what this thread allocates from now on.
    pub fn count_this_thread() {
        IS_COUNTED.set(true);
    }

    /// Allocations and reallocations so far, by all threads that are counted.
    #[must_use]
    pub fn allocations() -> u64 {
        ALLOCATIONS.load(Relaxed)
    }
}

impl Default for Counting<Allocator> {
    fn default() -> Self {
        Self::new()
    }
}

fn count() {
    if IS_COUNTED.get() {
        ALLOCATIONS.fetch_add(1, Relaxed);
    }
}

// SAFETY: every call is passed to `A` as it came, so `A`'s own guarantees carry over. Counting
// allocates nothing: the flag of a thread is constant at first and has no destructor.
unsafe impl<A: GlobalAlloc> GlobalAlloc for Counting<A> {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's obligations are `A`'s.
        unsafe { self.0.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's obligations are `A`'s.
        unsafe { self.0.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller's obligations are `A`'s.
        unsafe { self.0.dealloc(block, layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        count();
        // SAFETY: the caller's obligations are `A`'s.
        unsafe { self.0.realloc(block, layout, new_size) }
    }
}

/// Overwrites `size` bytes with zeros. The optimizer cannot remove the stores as dead.
///
/// # Safety
/// `block` is valid for writes of `size` bytes.
///
/// # Safety
/// `block` is valid for writes of `size` bytes.
#[inline]
unsafe fn wipe(block: *mut u8, size: usize) {
    // SAFETY: the caller's promise. The empty assembly may read any memory as far as the compiler
    // knows, so the zeros have to be there by then; LLVM does drop stores before a `free` that it
    // recognises.
    unsafe {
        ptr::write_bytes(block, 0, size);
        std::arch::asm!("/* {0} */", in(reg) block, options(nostack, preserves_flags, readonly));
    }
}

#[cfg(test)]
mod tests {
    use std::{
        cell::UnsafeCell,
        sync::atomic::{AtomicUsize, Ordering},
    };

    use super::*;

    /// Hands out pieces of one array and never takes them back, so that what is in a freed block
    /// can be looked at.
    struct Arena {
        memory: UnsafeCell<[u8; 4096]>,
        used: AtomicUsize,
    }

    // SAFETY: pieces are handed out once each.
    unsafe impl Sync for Arena {}

    // SAFETY: pieces are aligned, distinct and within the array.
    unsafe impl GlobalAlloc for Arena {
        unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
            let size = layout.size().next_multiple_of(16);
            let at = self.used.fetch_add(size, Ordering::Relaxed);
            assert!(at + size <= 4096 && layout.align() <= 16);
            // SAFETY: within the array, as just checked.
            unsafe { self.memory.get().cast::<u8>().add(at) }
        }
        unsafe fn dealloc(&self, _: *mut u8, _: Layout) {}
    }

    const SECRET: &[u8] = b"sk-REAL-0123456789-abcdefgh";

    fn arena() -> Arena {
        Arena { memory: UnsafeCell::new([0; 4096]), used: AtomicUsize::new(0) }
    }

    /// Eight-byte windows of the secret that are still somewhere in the arena.
    fn windows(arena: &Arena) -> usize {
        // SAFETY: nothing writes while this looks.
        let memory = unsafe { &*arena.memory.get() };
        SECRET.windows(8).filter(|w| memory.windows(8).any(|m| m == *w)).count()
    }

    /// What a buffer goes through: allocated, filled, grown, shrunk, freed.
    fn life(allocator: &impl GlobalAlloc) {
        let layout = |size| Layout::from_size_align(size, 8).unwrap();
        // SAFETY: sizes and layouts match throughout.
        unsafe {
            let block = allocator.alloc(layout(SECRET.len()));
            ptr::copy_nonoverlapping(SECRET.as_ptr(), block, SECRET.len());
            let block = allocator.realloc(block, layout(SECRET.len()), 64);
            assert_eq!(std::slice::from_raw_parts(block, SECRET.len()), SECRET);
            let block = allocator.realloc(block, layout(64), 20);
            assert_eq!(std::slice::from_raw_parts(block, 20), &SECRET[..20]);
            allocator.dealloc(block, layout(20));
        }
    }

    #[test]
    fn blocks_are_aligned_as_asked() {
        for size in (1..200).chain([4096, 70_000]) {
            for align in [1, 2, 4, 8, 16, 32, 64, 4096] {
                let layout = Layout::from_size_align(size, align).unwrap();
                // SAFETY: the layout is the same throughout, and the block is large enough for a
                // byte at either end.
                unsafe {
                    let blocks: Vec<_> = (0..3).map(|_| Mimalloc.alloc(layout)).collect();
                    for block in &blocks {
                        assert!(!block.is_null() && block.addr() % align == 0, "{layout:?}");
                        block.write(1);
                        block.add(size - 1).write(2);
                    }
                    blocks.into_iter().for_each(|block| Mimalloc.dealloc(block, layout));
                }
            }
        }
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_process_that_keeps_its_memory_small_has_no_huge_pages() {
        keep_memory_small();
        // SAFETY: the kernel writes nothing.
        assert_eq!(unsafe { libc::prctl(libc::PR_GET_THP_DISABLE, 0, 0, 0, 0) }, 1);
        // SAFETY: as above.
        assert_eq!(unsafe { mi_option_get(MI_OPTION_PURGE_DELAY) }, PURGE_DELAY_MS);
        release_freed_memory();
    }

    #[test]
    fn nothing_of_a_freed_or_moved_block_is_left() {
        let wiping = Wiping::over(arena());
        life(&wiping);
        assert_eq!(windows(&wiping.0), 0);
    }

    #[test]
    fn without_wiping_everything_is_left() {
        let plain = arena();
        life(&plain);
        assert_eq!(windows(&plain), SECRET.len() - 7, "the control of the test above finds nothing");
    }
}
