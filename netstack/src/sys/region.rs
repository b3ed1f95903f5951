//! Memory that a socket set borrows for as long as it lives.

use std::fmt;
use std::mem::ManuallyDrop;

/// Zeroed memory for ring buffers; untouched pages cost nothing where it is mapped.
pub(crate) struct Region(Memory);

enum Memory {
    Heap(Box<[u8]>),
    #[cfg(feature = "driver")]
    Mapped(Mapping),
}

impl Region {
    /// Memory from the allocator.
    pub(crate) fn heap(len: usize) -> Self {
        Region(Memory::Heap(vec![0; len].into_boxed_slice()))
    }

    /// Anonymous private pages, or `None` where the kernel has none left.
    #[cfg(feature = "driver")]
    pub(crate) fn mapped(len: usize) -> Option<Self> {
        Mapping::new(len).map(|mapping| Region(Memory::Mapped(mapping)))
    }

    /// Length in bytes.
    pub(crate) fn len(&self) -> usize {
        match &self.0 {
            Memory::Heap(bytes) => bytes.len(),
            #[cfg(feature = "driver")]
            Memory::Mapped(mapping) => mapping.len,
        }
    }

    fn start(&mut self) -> *mut u8 {
        match &mut self.0 {
            Memory::Heap(bytes) => bytes.as_mut_ptr(),
            #[cfg(feature = "driver")]
            Memory::Mapped(mapping) => mapping.start.as_ptr(),
        }
    }
}

impl fmt::Debug for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Region({} bytes)", self.len())
    }
}

/// Asks the allocator to return what it holds back to the kernel. Only glibc has a way to ask.
#[cfg(feature = "driver")]
pub(crate) fn trim_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes an integer and is safe to call at any time (malloc_trim(3)).
    unsafe {
        libc::malloc_trim(0);
    }
}

/// A value together with the region it borrows: smoltcp wants `'static` buffers, the pool wants them back.
pub(crate) struct Loan<T> {
    value: ManuallyDrop<T>,
    region: ManuallyDrop<Region>,
}

impl<T> Loan<T> {
    /// Lends all of `region` to the value that `make` builds. The value must keep the slice to itself:
    /// nothing reachable through [`Loan::get_mut`] may hand it out for longer than the borrow of the loan.
    pub(crate) fn new(mut region: Region, make: impl FnOnce(&'static mut [u8]) -> T) -> Self {
        let (start, len) = (region.start(), region.len());
        // SAFETY: the memory is initialised (zeroed by the allocator or the kernel), `len` bytes long and owned
        // by `region`, which this loan keeps, unmoved in memory (both kinds live outside the struct) and
        // untouched, until the value is dropped.
        let bytes = unsafe { std::slice::from_raw_parts_mut(start, len) };
        Loan { value: ManuallyDrop::new(make(bytes)), region: ManuallyDrop::new(region) }
    }

    pub(crate) fn get(&self) -> &T {
        &self.value
    }

    pub(crate) fn get_mut(&mut self) -> &mut T {
        &mut self.value
    }

    /// Gives the pages back to the kernel; they read as zeros afterwards. For a region whose rings hold no
    /// bytes that anybody will read.
    pub(crate) fn release_pages(&mut self) {
        match &self.region.0 {
            Memory::Heap(_) => {}
            #[cfg(feature = "driver")]
            Memory::Mapped(mapping) => mapping.release_pages(),
        }
    }

    /// Drops the value and returns the region.
    pub(crate) fn end(mut self) -> Region {
        // SAFETY: `self` is forgotten below, so each field is taken exactly once, the borrower first.
        let region = unsafe {
            ManuallyDrop::drop(&mut self.value);
            ManuallyDrop::take(&mut self.region)
        };
        std::mem::forget(self);
        region
    }
}

impl<T> Drop for Loan<T> {
    fn drop(&mut self) {
        // SAFETY: drop runs once and nothing else drops the fields; the borrower goes before the memory.
        unsafe {
            ManuallyDrop::drop(&mut self.value);
            ManuallyDrop::drop(&mut self.region);
        }
    }
}

impl<T: fmt::Debug> fmt::Debug for Loan<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Loan").field("region", &*self.region).finish_non_exhaustive()
    }
}

#[cfg(feature = "driver")]
use mapping::Mapping;

#[cfg(feature = "driver")]
mod mapping {
    use std::ptr::NonNull;

    /// Anonymous pages of our own.
    pub(super) struct Mapping {
        pub(super) start: NonNull<u8>,
        pub(super) len: usize,
    }

    // SAFETY: the pages belong to the value alone and are not tied to a thread.
    unsafe impl Send for Mapping {}

    impl Mapping {
        pub(super) fn new(len: usize) -> Option<Self> {
            // SAFETY: an anonymous mapping at an address of the kernel's choice touches no existing memory.
            let start = unsafe {
                libc::mmap(
                    std::ptr::null_mut(),
                    len,
                    libc::PROT_READ | libc::PROT_WRITE,
                    libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                    -1,
                    0,
                )
            };
            if start == libc::MAP_FAILED {
                return None;
            }
            NonNull::new(start.cast()).map(|start| Mapping { start, len })
        }

        pub(super) fn release_pages(&self) {
            // SAFETY: the range is exactly our mapping; MADV_DONTNEED keeps it mapped and zero-filled.
            unsafe { libc::madvise(self.start.as_ptr().cast(), self.len, libc::MADV_DONTNEED) };
        }
    }

    impl Drop for Mapping {
        fn drop(&mut self) {
            // SAFETY: the range is exactly our mapping and nobody borrows it any more (see `Loan`).
            unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_region_can_be_lent_again() {
        let loan = Loan::new(Region::heap(64), |bytes| {
            bytes[0] = 7;
            bytes
        });
        let region = loan.end();
        let mut loan = Loan::new(region, |bytes| bytes);
        assert_eq!(loan.get()[0], 7);
        loan.get_mut()[1] = 8;
        assert_eq!(loan.end().len(), 64);
    }

    #[cfg(feature = "driver")]
    #[test]
    fn released_pages_read_as_zeros() {
        let mut loan = Loan::new(Region::mapped(8192).unwrap(), |bytes| bytes);
        loan.get_mut().fill(0xff);
        loan.release_pages();
        assert!(loan.get().iter().all(|&b| b == 0));
    }
}
