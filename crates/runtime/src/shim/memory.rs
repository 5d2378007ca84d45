//! Gives back what a shim that has nothing to do has in memory: the pages of its code, and free heap.

/// Lets go of what comes back by itself when it is next needed.
pub fn let_go() {
    // SAFETY: the callback takes no data, and gets a valid description of each object; `malloc_trim` touches free memory only.
    unsafe {
        libc::dl_iterate_phdr(Some(unmap), std::ptr::null_mut());
        #[cfg(target_env = "gnu")]
        libc::malloc_trim(0);
    }
}

/// Unmaps the pages of an object's segments that are never written to: they are read from the page cache again.
unsafe extern "C" fn unmap(
    object: *mut libc::dl_phdr_info,
    _: libc::size_t,
    _: *mut libc::c_void,
) -> libc::c_int {
    // SAFETY: the caller hands over a valid description, whose headers stay mapped.
    let (base, headers) = unsafe {
        let object = &*object;
        // The vDSO, and what else has no file, is small and not to be touched.
        if object.dlpi_phdr.is_null() || object.dlpi_phnum == 0 || !is_own(object.dlpi_phdr) {
            return 0;
        }
        (object.dlpi_addr, std::slice::from_raw_parts(object.dlpi_phdr, usize::from(object.dlpi_phnum)))
    };
    for header in headers {
        if header.p_type == libc::PT_LOAD && header.p_flags & libc::PF_W == 0 {
            let (start, end) = whole_pages(base + header.p_vaddr, header.p_memsz);
            if end > start {
                // SAFETY: whole pages of a private mapping of a file that nobody wrote to: code and constants in a static
                // executable hold no relocations, so that each page reads the same when it is next touched.
                unsafe {
                    let (at, length) = (start as *mut libc::c_void, (end - start) as usize);
                    // Else what comes back does so in pieces of two megabytes where the page cache has such.
                    libc::madvise(at, length, libc::MADV_NOHUGEPAGE);
                    libc::madvise(at, length, libc::MADV_DONTNEED);
                }
            }
        }
    }
    0
}

/// Whether these headers are those of the executable itself.
fn is_own(headers: *const libc::Elf64_Phdr) -> bool {
    // SAFETY: reads a number that the kernel handed over.
    headers as u64 == unsafe { libc::getauxval(libc::AT_PHDR) }
}

/// The whole pages within a range, as start and end.
fn whole_pages(start: u64, length: u64) -> (u64, u64) {
    const PAGE: u64 = 4096;
    (start.next_multiple_of(PAGE), (start + length) / PAGE * PAGE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_pages_go() {
        assert_eq!(whole_pages(0x1001, 0x3000), (0x2000, 0x4000));
        assert_eq!(whole_pages(0x1000, 0x2000), (0x1000, 0x3000));
        let (start, end) = whole_pages(0x1001, 0x100);
        assert!(end <= start);
    }

    #[test]
    fn the_program_goes_on_without_its_pages() {
        static WRITTEN: std::sync::Mutex<u32> = std::sync::Mutex::new(1);
        *WRITTEN.lock().expect("no panic") = 2;
        let_go();
        assert_eq!(*WRITTEN.lock().expect("no panic"), 2);
        assert_eq!(format!("{:?}", ["still", "here"]), "[\"still\", \"here\"]");
    }
}
