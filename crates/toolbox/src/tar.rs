//! `tar`, as `kubectl cp` calls it: create to and extract from a file or a standard stream.

use crate::{Failure, Outcome};
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

const USAGE: &str = "tar c|x|t[v]f FILE [-C FOLDER] [PATH]...";

pub(crate) fn main(args: &[String]) -> Outcome {
    let mut rest = args.iter();
    let (mut action, mut verbose, mut archive, mut folder, mut paths) =
        (None, false, "-".to_owned(), ".".to_owned(), Vec::new());
    let mut first = true;
    while let Some(arg) = rest.next() {
        // The first word may lack its dash.
        let letters = match arg.strip_prefix('-') {
            Some(letters) if !letters.starts_with('-') && !letters.is_empty() => letters,
            None if first => arg.as_str(),
            Some(_) if arg.starts_with("--") => "",
            _ => {
                paths.push(arg.as_str());
                continue;
            }
        };
        first = false;
        for letter in letters.chars() {
            match letter {
                'c' | 'x' | 't' => action = Some(letter),
                'v' => verbose = true,
                'f' => archive = rest.next().ok_or_else(|| Failure::usage(USAGE))?.clone(),
                'C' => folder = rest.next().ok_or_else(|| Failure::usage(USAGE))?.clone(),
                'm' | 'p' | 'o' | 'h' => {}
                _ => return Err(Failure::usage(USAGE)),
            }
        }
    }
    match action {
        Some('c') => create(&archive, &folder, &paths, verbose),
        Some('x') => extract(&archive, &folder, verbose),
        Some('t') => list(&archive),
        _ => Err(Failure::usage(USAGE)),
    }
}

fn input(archive: &str) -> Result<Box<dyn Read>, Failure> {
    if archive == "-" {
        return Ok(Box::new(io::stdin()));
    }
    Ok(Box::new(File::open(archive).map_err(|error| Failure::about(archive, error))?))
}

fn create(archive: &str, folder: &str, paths: &[&str], verbose: bool) -> Outcome {
    if paths.is_empty() {
        return Err(Failure::new("refusing to create an empty archive"));
    }
    let output: Box<dyn Write> = if archive == "-" {
        Box::new(io::stdout())
    } else {
        Box::new(File::create(archive).map_err(|error| Failure::about(archive, error))?)
    };
    let mut builder = ::tar::Builder::new(io::BufWriter::new(output));
    builder.follow_symlinks(false);
    for path in paths {
        let source = Path::new(folder).join(path);
        // Names in an archive are relative.
        let name = path.trim_start_matches('/');
        let name = if name.is_empty() { "." } else { name };
        let result = match std::fs::symlink_metadata(&source) {
            Ok(meta) if meta.is_dir() => builder.append_dir_all(name, &source),
            Ok(_) => builder.append_path_with_name(&source, name),
            Err(error) => Err(error),
        };
        result.map_err(|error| Failure::about(path, error))?;
        if verbose {
            eprintln!("{path}");
        }
    }
    builder.into_inner()?.flush()?;
    Ok(0)
}

fn extract(archive: &str, folder: &str, verbose: bool) -> Outcome {
    let mut reader = ::tar::Archive::new(input(archive)?);
    reader.set_preserve_permissions(true);
    for entry in reader.entries()? {
        let mut entry = entry?;
        let name = entry.path()?.into_owned();
        // `unpack_in` refuses names that lead out of the folder.
        if !entry.unpack_in(folder)? {
            return Err(Failure::about(name.display(), "leads out of the folder"));
        }
        if verbose {
            println!("{}", name.display());
        }
    }
    Ok(0)
}

fn list(archive: &str) -> Outcome {
    for entry in ::tar::Archive::new(input(archive)?).entries()? {
        println!("{}", entry?.path()?.display());
    }
    Ok(0)
}
