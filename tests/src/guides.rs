//! The command blocks of the guides, and the examples of `--help` texts.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// A block of a guide that is set as code, or the examples of one `--help` text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    /// The guide, by its path from the root; the command whose help it is.
    pub guide: String,
    /// The heading above it.
    pub heading: String,
    /// The lines, without their indentation.
    pub lines: Vec<String>,
}

impl Block {
    /// The commands: lines that end with a backslash continue on the next one. Comment lines are left out.
    #[must_use]
    pub fn commands(&self) -> Vec<String> {
        let mut commands = Vec::new();
        let mut begun = String::new();
        for line in &self.lines {
            if begun.is_empty() && (line.is_empty() || line.starts_with('#')) {
                continue;
            }
            begun.push_str(line);
            if line.ends_with('\\') {
                begun.push('\n');
            } else {
                commands.push(std::mem::take(&mut begun));
            }
        }
        commands.extend((!begun.is_empty()).then_some(begun));
        commands
    }
}

/// All blocks of all guides (`*.md`) below `root`, guide by guide, in their order.
///
/// # Errors
/// When a directory or a guide cannot be read.
pub fn blocks(root: &Path) -> io::Result<Vec<Block>> {
    let mut blocks = Vec::new();
    for path in guides(root)? {
        let text = fs::read_to_string(&path)?;
        let name = path.strip_prefix(root).unwrap_or(&path).to_string_lossy();
        blocks.extend(blocks_of(&name, &text));
    }
    Ok(blocks)
}

fn guides(root: &Path) -> io::Result<Vec<PathBuf>> {
    let mut directories = vec![root.to_owned()];
    let mut found = Vec::new();
    while let Some(directory) = directories.pop() {
        for entry in directory.read_dir()? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if path.is_dir() && name != "target" && !name.starts_with('.') {
                directories.push(path);
            } else if path.extension().is_some_and(|extension| extension == "md") {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

/// Markdown has two kinds of block: lines that are indented by four spaces after an empty line, and lines between fences.
fn blocks_of(guide: &str, text: &str) -> Vec<Block> {
    let mut blocks: Vec<Block> = Vec::new();
    let (mut heading, mut is_fenced, mut is_open, mut after_empty) = ("", false, false, true);
    for line in text.lines() {
        let code = match line.strip_prefix("    ") {
            _ if line.trim_start().starts_with("```") => {
                is_fenced = !is_fenced;
                is_open = false;
                continue;
            }
            _ if is_fenced => Some(line),
            Some(code) if after_empty || is_open => Some(code),
            None if line.is_empty() && is_open => Some(""),
            _ => None,
        };
        after_empty = line.is_empty();
        if let Some(code) = code {
            if !is_open {
                let (guide, heading) = (guide.to_owned(), heading.to_owned());
                blocks.push(Block { guide, heading, lines: Vec::new() });
            }
            blocks.last_mut().expect("the open block").lines.push(code.to_owned());
        } else if line.starts_with('#') {
            heading = line.trim_start_matches('#').trim();
        }
        is_open = code.is_some();
    }
    for block in &mut blocks {
        while block.lines.last().is_some_and(String::is_empty) {
            block.lines.pop();
        }
    }
    blocks
}

/// The examples of a `--help` text: the commands below a line that begins with "Example", each indented by two spaces,
/// with what it does at least two spaces after it. Further lines of an explanation are indented further.
#[must_use]
pub fn examples(command: &str, help: &str) -> Option<Block> {
    let mut lines = help.lines().skip_while(|line| !line.starts_with("Example")).skip(1);
    let mut examples = Vec::new();
    let mut continues = false;
    for line in lines.by_ref().take_while(|line| line.is_empty() || line.starts_with("  ")) {
        let text = line.trim_start();
        let indent = line.len() - text.len();
        // A sentence between commands begins with a capital letter.
        let is_command = indent == 2 && !text.starts_with(|first: char| first.is_uppercase());
        if continues || is_command {
            let command = text.find("  ").map_or(text, |end| &text[..end]);
            continues = command.ends_with('\\');
            examples.push(command.to_owned());
        }
    }
    let (guide, heading) = (format!("{command} --help"), "Examples".to_owned());
    (!examples.is_empty()).then_some(Block { guide, heading, lines: examples })
}

/// The commands that a `--help` text lists.
#[must_use]
pub fn commands_of(help: &str) -> Vec<String> {
    let lines = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    let named = lines.take_while(|line| line.starts_with("  "));
    let names = named.filter(|line| !line.starts_with("   "));
    names.filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect()
}

/// The examples of the scripts: the help of each is the comment at its head.
///
/// # Errors
/// When a script cannot be read.
pub fn examples_of_scripts(root: &Path) -> io::Result<Vec<Block>> {
    let mut blocks = Vec::new();
    for directory in ["qemu-scripts", "tests", "tests/bench", "tests/fuzz"] {
        for entry in root.join(directory).read_dir()? {
            let path = entry?.path();
            if path.is_file() && path.extension().is_none() {
                let text = fs::read_to_string(&path)?;
                let head = text.lines().skip(1).map_while(|line| line.strip_prefix('#'));
                let head: Vec<_> =
                    head.map(|line| line.strip_prefix(' ').unwrap_or(line)).collect();
                let name = path.strip_prefix(root).unwrap_or(&path).to_string_lossy();
                blocks.extend(examples(&name, &head.join("\n")));
            }
        }
    }
    blocks.sort_by(|a, b| a.guide.cmp(&b.guide));
    Ok(blocks)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_found_with_their_headings_and_commands() {
        let text = "# A\n\ntext\n    not code\n\n    one \\\n      more   # why\n\n    # a comment\n    two\n\n\
                    ## B\n```sh\nthree\n```\n- item\n\n    four\n";
        let blocks = blocks_of("x.md", text);
        let found: Vec<_> =
            blocks.iter().map(|block| (block.heading.as_str(), block.commands())).collect();
        let expected = [
            ("A", vec!["one \\\n  more   # why".to_owned(), "two".to_owned()]),
            ("B", vec!["three".to_owned()]),
            ("B", vec!["four".to_owned()]),
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn examples_are_told_from_what_they_do() {
        let help = "Usage: x\n\nExamples:\n  x now        at once\n  x 'a b' | y \\\n      -z\n      \
                    later lines\n\n  The other one:\n  z\n\nKeys:\n  q  quit\n";
        let block = examples("x", help).unwrap();
        assert_eq!(block.commands(), ["x now", "x 'a b' | y \\\n-z", "z"]);
        assert_eq!(examples("x", "Usage: x\n  Examples"), None);
    }
}
