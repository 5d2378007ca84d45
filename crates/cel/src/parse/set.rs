//! Sets of kinds of tokens, numbered in the order in which messages name them.

use super::lexer::{Kind as Lexeme, Token};

/// A bit for each kind.
pub(super) type Set = u64;

/// How messages name the kinds.
const NAMES_SHOWN: [&str; 36] = [
    "<EOF>",
    "'=='",
    "'!='",
    "'in'",
    "'<'",
    "'<='",
    "'>='",
    "'>'",
    "'&&'",
    "'||'",
    "'['",
    "']'",
    "'{'",
    "'}'",
    "'('",
    "')'",
    "'.'",
    "','",
    "'-'",
    "'!'",
    "'?'",
    "':'",
    "'+'",
    "'*'",
    "'/'",
    "'%'",
    "'true'",
    "'false'",
    "'null'",
    "NUM_FLOAT",
    "NUM_INT",
    "NUM_UINT",
    "STRING",
    "BYTES",
    "IDENTIFIER",
    "ESC_IDENTIFIER",
];

pub(super) const EOF: Set = 1;
pub(super) const RELATIONS: Set = 0xfe;
pub(super) const AND: Set = 1 << 8;
pub(super) const OR: Set = 1 << 9;
pub(super) const OPEN_LIST: Set = 1 << 10;
pub(super) const CLOSE_LIST: Set = 1 << 11;
pub(super) const OPEN_MAP: Set = 1 << 12;
pub(super) const CLOSE_MAP: Set = 1 << 13;
pub(super) const OPEN: Set = 1 << 14;
pub(super) const CLOSE: Set = 1 << 15;
pub(super) const DOT: Set = 1 << 16;
pub(super) const COMMA: Set = 1 << 17;
pub(super) const MINUS: Set = 1 << 18;
pub(super) const NOT: Set = 1 << 19;
pub(super) const QUESTION: Set = 1 << 20;
pub(super) const COLON: Set = 1 << 21;
pub(super) const SUMS: Set = MINUS | 1 << 22;
pub(super) const PRODUCTS: Set = 7 << 23;
pub(super) const NUMBERS: Set = 3 << 29;
/// All literals but for the sign of a number.
pub(super) const LITERALS: Set = 0xff << 26;
pub(super) const IDENT: Set = 1 << 34;
pub(super) const ESCAPED: Set = 1 << 35;
pub(super) const NAMES: Set = IDENT | ESCAPED;
/// What a member begins with, and what an expression does.
pub(super) const MEMBER: Set = OPEN_LIST | OPEN_MAP | OPEN | DOT | MINUS | LITERALS | IDENT;
pub(super) const EXPR: Set = MEMBER | NOT;

/// The kind of a token.
pub(super) fn of(token: &Token<'_>) -> Set {
    let number = match token.kind {
        Lexeme::Eof => 0,
        Lexeme::Float => 29,
        Lexeme::Int => 30,
        Lexeme::Uint => 31,
        Lexeme::Str => 32,
        Lexeme::Bytes => 33,
        Lexeme::Ident => 34,
        Lexeme::EscapedIdent => 35,
        Lexeme::Sign => {
            let is = |name: &&str| name.trim_matches('\'') == token.text;
            NAMES_SHOWN.iter().position(is).unwrap_or(0)
        }
    };
    1 << number
}

/// One name, or all of them in braces.
pub(super) fn shown(set: Set) -> String {
    let names: Vec<&str> =
        NAMES_SHOWN.iter().enumerate().filter(|(at, _)| set >> at & 1 == 1).map(|(_, name)| *name).collect();
    match names.as_slice() {
        [one] => (*one).to_owned(),
        all => format!("{{{}}}", all.join(", ")),
    }
}
