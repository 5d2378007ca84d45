//! `test` and `[`.

use crate::{Failure, Outcome};
use std::fs;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};

pub(crate) fn bracket(args: &[String]) -> Outcome {
    match args.split_last() {
        Some((last, rest)) if last == "]" => main(rest),
        _ => Err(Failure { text: "missing ]".into(), code: 2 }),
    }
}

pub(crate) fn main(args: &[String]) -> Outcome {
    let mut at = 0;
    if args.is_empty() {
        return Ok(1);
    }
    let truth = or(args, &mut at)?;
    if at < args.len() {
        return Err(wrong(&args[at]));
    }
    Ok(u8::from(!truth))
}

fn wrong(arg: &str) -> Failure {
    Failure { text: format!("unexpected {arg:?}"), code: 2 }
}

fn or(args: &[String], at: &mut usize) -> Result<bool, Failure> {
    let mut truth = and(args, at)?;
    while args.get(*at).is_some_and(|arg| arg == "-o") {
        *at += 1;
        truth |= and(args, at)?;
    }
    Ok(truth)
}

fn and(args: &[String], at: &mut usize) -> Result<bool, Failure> {
    let mut truth = primary(args, at)?;
    while args.get(*at).is_some_and(|arg| arg == "-a") {
        *at += 1;
        truth &= primary(args, at)?;
    }
    Ok(truth)
}

fn primary(args: &[String], at: &mut usize) -> Result<bool, Failure> {
    let missing = || Failure { text: "an argument is missing".into(), code: 2 };
    let first = args.get(*at).ok_or_else(missing)?;
    // A binary operator decides before `!`, so that `! = x` compares.
    if let (Some(operator), Some(right)) = (args.get(*at + 1), args.get(*at + 2))
        && let Some(truth) = binary(first, operator, right)?
    {
        *at += 3;
        return Ok(truth);
    }
    *at += 1;
    if first == "!" {
        return primary(args, at).map(|truth| !truth);
    }
    if let (true, Some(operand)) = (first.len() == 2 && first.starts_with('-'), args.get(*at))
        && let Some(truth) = unary(first, operand)
    {
        *at += 1;
        return Ok(truth);
    }
    Ok(!first.is_empty())
}

fn unary(operator: &str, operand: &str) -> Option<bool> {
    let meta = fs::metadata(operand);
    let mode = |bits| meta.as_ref().is_ok_and(|meta| meta.permissions().mode() & bits != 0);
    Some(match operator {
        "-n" => !operand.is_empty(),
        "-z" => operand.is_empty(),
        "-e" => meta.is_ok(),
        "-f" => meta.is_ok_and(|meta| meta.is_file()),
        "-d" => meta.is_ok_and(|meta| meta.is_dir()),
        "-s" => meta.is_ok_and(|meta| meta.len() > 0),
        "-S" => meta.is_ok_and(|meta| meta.file_type().is_socket()),
        "-p" => meta.is_ok_and(|meta| meta.file_type().is_fifo()),
        "-L" | "-h" => fs::symlink_metadata(operand).is_ok_and(|meta| meta.is_symlink()),
        "-r" => nix::unistd::access(operand, nix::unistd::AccessFlags::R_OK).is_ok(),
        "-w" => nix::unistd::access(operand, nix::unistd::AccessFlags::W_OK).is_ok(),
        "-x" => mode(0o111),
        _ => return None,
    })
}

fn binary(left: &str, operator: &str, right: &str) -> Result<Option<bool>, Failure> {
    let numbers = || -> Result<(i64, i64), Failure> {
        let parse = |text: &str| {
            text.trim().parse().map_err(|_| Failure { text: format!("{text:?} is not a number"), code: 2 })
        };
        Ok((parse(left)?, parse(right)?))
    };
    let compare = |holds: fn(&(i64, i64)) -> bool| numbers().map(|pair| Some(holds(&pair)));
    match operator {
        "=" | "==" => Ok(Some(left == right)),
        "!=" => Ok(Some(left != right)),
        "-eq" => compare(|(a, b)| a == b),
        "-ne" => compare(|(a, b)| a != b),
        "-lt" => compare(|(a, b)| a < b),
        "-le" => compare(|(a, b)| a <= b),
        "-gt" => compare(|(a, b)| a > b),
        "-ge" => compare(|(a, b)| a >= b),
        _ => Ok(None),
    }
}
