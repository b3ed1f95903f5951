//! Memory that a process has needed once.

use std::ffi::c_int;
use std::{ptr, slice};

/// Unmaps code and constants of this process until they are used again. They are the files' own and stay in the page cache.
///
/// Our processes do much at their start and then wait for months. Whatever was used stays mapped, with 64 KiB around it
/// (fault-around, `mm/memory.c` of Linux), in each of several processes of one file, and is kept from being reclaimed.
/// What is needed again comes back at the price of a minor fault.
pub(crate) fn release_code() {
    // SAFETY: the callback keeps to what dl_iterate_phdr(3) promises it, and takes no data.
    unsafe { libc::dl_iterate_phdr(Some(release), ptr::null_mut()) };
}

/// The ELF segments of one file.
unsafe extern "C" fn release(file: *mut libc::dl_phdr_info, _: libc::size_t, _: *mut libc::c_void) -> c_int {
    // SAFETY: dl_iterate_phdr(3) passes a valid structure, with as many headers as it says.
    let (base, headers) = unsafe {
        let file = &*file;
        (file.dlpi_addr, slice::from_raw_parts(file.dlpi_phdr, file.dlpi_phnum.into()))
    };
    // SAFETY: an integer.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) }.cast_unsigned();
    // What the loader relocates can be written at first, and is no such segment.
    let is_constant =
        |header: &&libc::Elf64_Phdr| header.p_type == libc::PT_LOAD && header.p_flags & libc::PF_W == 0;
    for header in headers.iter().filter(is_constant) {
        let start = base.wrapping_add(header.p_vaddr).next_multiple_of(page);
        let end = base.wrapping_add(header.p_vaddr).wrapping_add(header.p_memsz) / page * page;
        if let Some(length) = end.checked_sub(start) {
            // SAFETY: whole pages of a segment that nobody can write, so that they hold what the file does, and come from there
            // again. Fails where somebody has locked them.
            unsafe { libc::madvise(start as *mut libc::c_void, length as usize, libc::MADV_DONTNEED) };
        }
    }
    0
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// Resident code of the program under test, in KiB (proc_pid_smaps(5)).
    fn resident() -> u64 {
        let program = fs::read_link("/proc/self/exe").unwrap();
        let maps = fs::read_to_string("/proc/self/smaps").unwrap();
        let mut is_it = false;
        let mut sum = 0;
        for line in maps.lines() {
            if line.contains(" r-xp ") {
                is_it = line.ends_with(program.to_str().unwrap());
            } else if let Some(size) = line.strip_prefix("Rss:").filter(|_| is_it) {
                sum += size.trim().trim_end_matches(" kB").parse::<u64>().unwrap();
                is_it = false;
            }
        }
        sum
    }

    #[test]
    fn code_goes_and_comes_back() {
        // Other tests run meanwhile, and map what they use.
        let goes = |_| {
            let before = resident();
            release_code();
            resident() < before
        };
        assert!((0..100).any(goes));
        assert_eq!("1.5".parse(), Ok(1.5));
    }
}
