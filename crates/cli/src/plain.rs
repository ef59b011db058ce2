//! Text for a terminal whose locale has no UTF-8, such as `LANG=C`: each of our characters beyond ASCII has one in ASCII
//! that is as wide.

use std::env;

/// Whether the locale has UTF-8 (`locale(7)`: the first of the variables that is set decides). Without any, which is
/// usual in containers, we take it that it has.
fn is_utf8() -> bool {
    let set = |name| env::var(name).ok().filter(|value| !value.is_empty());
    let locale = ["LC_ALL", "LC_CTYPE", "LANG"].into_iter().find_map(set);
    locale.is_none_or(|locale| has_utf8(&locale))
}

fn has_utf8(locale: &str) -> bool {
    let locale = locale.to_ascii_lowercase();
    locale.contains("utf-8") || locale.contains("utf8")
}

/// `text` as the locale can show it.
pub fn shown(text: String) -> String {
    if text.is_ascii() || is_utf8() { text } else { text.chars().map(in_ascii).collect() }
}

/// What stands for a terminal's cell, if the locale cannot show it.
pub fn cell() -> impl Fn(&str) -> Option<String> {
    let is_utf8 = is_utf8();
    move |symbol| {
        (!is_utf8 && !symbol.is_ascii()).then(|| symbol.chars().map(in_ascii).take(1).collect())
    }
}

/// One character for another, so that columns stay in line.
const fn in_ascii(character: char) -> char {
    match character {
        ' '..='~' | '\n' | '\t' => character,
        '\u{b5}' | '\u{3bc}' => 'u',
        '≤' => '<',
        '≥' => '>',
        '▲' => '^',
        '▼' => 'v',
        '×' => 'x',
        '–' | '—' | '─' | '━' => '-',
        '│' | '┃' => '|',
        '┌' | '┐' | '└' | '┘' | '├' | '┤' | '┬' | '┴' | '┼' | '╭' | '╮' | '╰' | '╯' => {
            '+'
        }
        '█' | '▉' | '▊' | '▋' | '▌' | '▍' | '▎' | '▏' | '▁'..='▇' => '#',
        _ => '?',
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_locale_names_its_characters() {
        for (locale, expected) in
            [("C", false), ("POSIX", false), ("de_DE.ISO-8859-1", false), ("en_US.UTF-8", true)]
        {
            assert_eq!(has_utf8(locale), expected, "{locale}");
        }
        assert!(has_utf8("C.utf8"));
    }

    #[test]
    fn nothing_of_ours_becomes_a_question_mark_or_moves_its_column() {
        let ours = "1.5 \u{b5}s ≤ ▲▼ └─┘ ×";
        let plain: String = ours.chars().map(in_ascii).collect();
        assert_eq!(plain, "1.5 us < ^v +-+ x");
    }
}
