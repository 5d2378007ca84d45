//! Applets about files and file systems.

use crate::{Failure, Outcome, duration, flags, has, process, size};
use std::fs::{self, File, Metadata};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

fn about<T>(name: impl AsRef<Path>, result: io::Result<T>) -> Result<T, Failure> {
    result.map_err(|error| Failure::about(name.as_ref().display(), error))
}

fn mode_text(meta: &Metadata) -> String {
    let kind = meta.file_type();
    let mut text = String::from(if kind.is_dir() {
        "d"
    } else if kind.is_symlink() {
        "l"
    } else if kind.is_socket() {
        "s"
    } else if kind.is_fifo() {
        "p"
    } else if kind.is_char_device() {
        "c"
    } else if kind.is_block_device() {
        "b"
    } else {
        "-"
    });
    let mode = meta.permissions().mode();
    for shift in [6, 3, 0] {
        for (bit, letter) in [(4, 'r'), (2, 'w'), (1, 'x')] {
            text.push(if mode >> shift & bit != 0 { letter } else { '-' });
        }
    }
    if mode & 0o1000 != 0 {
        text.pop();
        text.push('t');
    }
    text
}

pub(crate) fn ls(args: &[String]) -> Outcome {
    let (found, mut operands) = flags(args, "lanAdR1hi", "", "ls [-laAd] [PATH]...")?;
    if operands.is_empty() {
        operands.push(".");
    }
    let mut out = io::stdout().lock();
    let mut show = |path: &Path, name: &str| -> Result<(), Failure> {
        if !has(&found, 'l') && !has(&found, 'n') {
            return Ok(writeln!(out, "{name}")?);
        }
        let meta = about(path, fs::symlink_metadata(path))?;
        let time = process::format_time(meta.mtime(), 0, "%F %H:%M");
        let target = if meta.is_symlink() {
            format!(" -> {}", about(path, fs::read_link(path))?.display())
        } else {
            String::new()
        };
        Ok(writeln!(
            out,
            "{} {:>3} {:>5} {:>5} {:>10} {time} {name}{target}",
            mode_text(&meta),
            meta.nlink(),
            meta.uid(),
            meta.gid(),
            meta.size(),
        )?)
    };
    let mut code = 0;
    for operand in operands {
        let path = Path::new(operand);
        let meta = match fs::metadata(path).or_else(|_| fs::symlink_metadata(path)) {
            Ok(meta) => meta,
            Err(error) => {
                eprintln!("ls: {operand}: {error}");
                code = 1;
                continue;
            }
        };
        if !meta.is_dir() || has(&found, 'd') {
            show(path, operand)?;
            continue;
        }
        let mut names: Vec<String> = about(path, fs::read_dir(path))?
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .filter(|name| !name.starts_with('.') || has(&found, 'a') || has(&found, 'A'))
            .collect();
        if has(&found, 'a') {
            names.extend([".".to_owned(), "..".to_owned()]);
        }
        names.sort();
        for name in names {
            show(&path.join(&name), &name)?;
        }
    }
    Ok(code)
}

pub(crate) fn mkdir(args: &[String]) -> Outcome {
    let (found, operands) = flags(args, "p", "m", "mkdir [-p] PATH...")?;
    for path in operands {
        about(path, if has(&found, 'p') { fs::create_dir_all(path) } else { fs::create_dir(path) })?;
    }
    Ok(0)
}

pub(crate) fn rm(args: &[String]) -> Outcome {
    let (found, operands) = flags(args, "rRf", "", "rm [-rf] PATH...")?;
    let recursive = has(&found, 'r') || has(&found, 'R');
    for path in operands {
        let result = match fs::symlink_metadata(path) {
            Ok(meta) if meta.is_dir() && recursive => fs::remove_dir_all(path),
            Ok(meta) if meta.is_dir() => Err(io::ErrorKind::IsADirectory.into()),
            Ok(_) => fs::remove_file(path),
            Err(error) => Err(error),
        };
        match result {
            Err(error) if has(&found, 'f') && error.kind() == io::ErrorKind::NotFound => {}
            other => about(path, other)?,
        }
    }
    Ok(0)
}

pub(crate) fn touch(args: &[String]) -> Outcome {
    let (_, operands) = flags(args, "", "", "touch FILE...")?;
    for path in operands {
        let file = about(path, File::options().create(true).append(true).open(path))?;
        about(path, file.set_modified(SystemTime::now()))?;
    }
    Ok(0)
}

/// Where `cp`, `mv` and `ln` put something: into the target if that is a folder.
fn destination(source: &str, target: &str) -> PathBuf {
    let target = PathBuf::from(target);
    match Path::new(source).file_name() {
        Some(name) if target.is_dir() => target.join(name),
        _ => target,
    }
}

pub(crate) fn cp(args: &[String]) -> Outcome {
    const USAGE: &str = "cp [-r] SOURCE... TARGET";
    let (found, operands) = flags(args, "rRafp", "", USAGE)?;
    let (target, sources) = operands.split_last().ok_or_else(|| Failure::usage(USAGE))?;
    let recursive = has(&found, 'r') || has(&found, 'R') || has(&found, 'a');
    for source in sources {
        copy(Path::new(source), &destination(source, target), recursive)?;
    }
    Ok(0)
}

fn copy(source: &Path, target: &Path, recursive: bool) -> Result<(), Failure> {
    let meta = about(source, fs::symlink_metadata(source))?;
    if meta.is_dir() {
        if !recursive {
            return Err(Failure::about(source.display(), "is a directory (use -r)"));
        }
        about(target, fs::create_dir_all(target))?;
        for entry in about(source, fs::read_dir(source))? {
            let name = entry?.file_name();
            copy(&source.join(&name), &target.join(&name), true)?;
        }
    } else if meta.is_symlink() && recursive {
        about(target, symlink(about(source, fs::read_link(source))?, target))?;
    } else {
        about(source, fs::copy(source, target))?;
    }
    Ok(())
}

pub(crate) fn mv(args: &[String]) -> Outcome {
    const USAGE: &str = "mv SOURCE... TARGET";
    let (_, operands) = flags(args, "f", "", USAGE)?;
    let (target, sources) = operands.split_last().ok_or_else(|| Failure::usage(USAGE))?;
    for source in sources {
        let to = destination(source, target);
        match fs::rename(source, &to) {
            Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {
                copy(Path::new(source), &to, true)?;
                rm(&["-r".to_owned(), (*source).to_owned()])?;
            }
            other => about(source, other)?,
        }
    }
    Ok(0)
}

pub(crate) fn ln(args: &[String]) -> Outcome {
    const USAGE: &str = "ln [-sf] TARGET LINK";
    let (found, operands) = flags(args, "sfn", "", USAGE)?;
    let [target, link] = operands[..] else { return Err(Failure::usage(USAGE)) };
    if has(&found, 'f') {
        let _ = fs::remove_file(link);
    }
    about(link, if has(&found, 's') { symlink(target, link) } else { fs::hard_link(target, link) })?;
    Ok(0)
}

pub(crate) fn readlink(args: &[String]) -> Outcome {
    let (found, operands) = flags(args, "f", "", "readlink [-f] PATH")?;
    for path in operands {
        let target = if has(&found, 'f') { fs::canonicalize(path) } else { fs::read_link(path) };
        println!("{}", about(path, target)?.display());
    }
    Ok(0)
}

pub(crate) fn chmod(args: &[String]) -> Outcome {
    const USAGE: &str = "chmod OCTAL-MODE PATH... (or +x)";
    let Some((mode, paths)) = args.split_first() else { return Err(Failure::usage(USAGE)) };
    for path in paths {
        let bits = match mode.as_str() {
            "+x" => about(path, fs::metadata(path))?.permissions().mode() | 0o111,
            _ => u32::from_str_radix(mode, 8).map_err(|_| Failure::usage(USAGE))?,
        };
        about(path, fs::set_permissions(path, fs::Permissions::from_mode(bits)))?;
    }
    Ok(0)
}

pub(crate) fn sync(_: &[String]) -> Outcome {
    nix::unistd::sync();
    Ok(0)
}

pub(crate) fn stat(args: &[String]) -> Outcome {
    let (found, operands) = flags(args, "L", "c", "stat [-L] [-c FORMAT] PATH...")?;
    let format = found.iter().find(|(flag, _)| *flag == 'c').map(|(_, format)| *format);
    for path in operands {
        let meta =
            about(path, if has(&found, 'L') { fs::metadata(path) } else { fs::symlink_metadata(path) })?;
        let format = format.unwrap_or("%n: %A %a uid=%u gid=%g size=%s mtime=%Y links=%h");
        let mut letters = format.chars();
        let mut text = String::new();
        while let Some(letter) = letters.next() {
            if letter != '%' {
                text.push(letter);
                continue;
            }
            match letters.next() {
                Some('n') => text += path,
                Some('a') => text += &format!("{:o}", meta.permissions().mode() & 0o7777),
                Some('A') => text += &mode_text(&meta),
                Some('u') => text += &meta.uid().to_string(),
                Some('g') => text += &meta.gid().to_string(),
                Some('s') => text += &meta.size().to_string(),
                Some('i') => text += &meta.ino().to_string(),
                Some('h') => text += &meta.nlink().to_string(),
                Some('Y') => text += &meta.mtime().to_string(),
                Some('F') => {
                    text += if meta.is_dir() {
                        "directory"
                    } else if meta.is_symlink() {
                        "symbolic link"
                    } else {
                        "regular file"
                    }
                }
                Some(other) => text.push(other),
                None => text.push('%'),
            }
        }
        println!("{text}");
    }
    Ok(0)
}

/// Device, mount point, type and options of everything mounted.
fn mounts() -> Result<Vec<[String; 4]>, Failure> {
    let text = about("/proc/mounts", fs::read_to_string("/proc/mounts"))?;
    let field =
        |parts: &mut std::str::SplitWhitespace<'_>| parts.next().unwrap_or_default().replace("\\040", " ");
    Ok(text
        .lines()
        .map(|line| {
            let mut parts = line.split_whitespace();
            std::array::from_fn(|_| field(&mut parts))
        })
        .collect())
}

pub(crate) fn mount(args: &[String]) -> Outcome {
    if !args.is_empty() {
        return Err(Failure::usage("mount (only lists)"));
    }
    let mut out = io::stdout().lock();
    for [device, point, kind, options] in mounts()? {
        writeln!(out, "{device} on {point} type {kind} ({options})")?;
    }
    Ok(0)
}

pub(crate) fn df(args: &[String]) -> Outcome {
    let (_, operands) = flags(args, "khm", "", "df [PATH]...")?;
    let paths: Vec<String> = if operands.is_empty() {
        mounts()?.into_iter().map(|[_, point, _, _]| point).collect()
    } else {
        operands.iter().map(|path| (*path).to_owned()).collect()
    };
    let mut out = io::stdout().lock();
    writeln!(out, "{:>12} {:>12} {:>12} Path", "1K-blocks", "Used", "Available")?;
    for path in paths {
        let Ok(stat) = nix::sys::statvfs::statvfs(path.as_str()) else { continue };
        let block = stat.fragment_size();
        if stat.blocks() == 0 && operands.is_empty() {
            continue;
        }
        let kib = |blocks: u64| blocks * block / 1024;
        writeln!(
            out,
            "{:>12} {:>12} {:>12} {path}",
            kib(stat.blocks()),
            kib(stat.blocks() - stat.blocks_free()),
            kib(stat.blocks_available())
        )?;
    }
    Ok(0)
}

pub(crate) fn files(args: &[String]) -> Outcome {
    const USAGE: &str =
        "files write PATH TEXT | append PATH TEXT [EVERY] | read PATH | fill PATH SIZE | watch PATH [FOR]";
    let usage = || Failure::usage(USAGE);
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match words[..] {
        ["write", path, text] => about(path, fs::write(path, format!("{text}\n")))?,
        ["append", path, text] => append(path, text)?,
        ["append", path, text, every] => {
            let every = duration(every)?;
            loop {
                append(path, text)?;
                std::thread::sleep(every);
            }
        }
        ["read", path] => {
            io::copy(&mut about(path, File::open(path))?, &mut io::stdout().lock())?;
        }
        ["fill", path, amount] => {
            let mut file = about(path, File::create(path))?;
            about(path, io::copy(&mut io::repeat(0x2e).take(size(amount)?), &mut file))?;
            about(path, file.sync_all())?;
        }
        ["watch", path] => watch(path, None)?,
        ["watch", path, time] => watch(path, Some(duration(time)?))?,
        _ => return Err(usage()),
    }
    Ok(0)
}

fn append(path: &str, text: &str) -> Result<(), Failure> {
    let mut file = about(path, File::options().create(true).append(true).open(path))?;
    about(path, writeln!(file, "{text}"))
}

/// Shows the content whenever it changes. Compares content, since projected volumes change by a swapped link that is not the file's own.
fn watch(path: &str, time: Option<Duration>) -> Result<(), Failure> {
    let start = Instant::now();
    let mut last: Option<Option<Vec<u8>>> = None;
    while time.is_none_or(|time| start.elapsed() < time) {
        let now = fs::read(path).ok();
        if last.as_ref() != Some(&now) {
            let mut out = io::stdout().lock();
            match &now {
                Some(bytes) => out.write_all(bytes)?,
                None => writeln!(out, "(no file)")?,
            }
            out.flush()?;
            last = Some(now);
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}
