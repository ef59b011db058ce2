//! The help on keys and columns, drawn over the screen.

use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::widgets::{Block, Clear, Paragraph};

use super::cells::lines;

const TEXT: &str = "\
up, down     marks a guest           Enter or 1-9  opens its screen
s            sorts by the next column        r     the other way round
p or space   pauses the display; packets are still counted
o            slowest bursts first, or last   Esc   back
h or ?       this                            q     ends ringscope top
pps, bps     packets and bits a second; drops: packets that went no further
mean ... max times in the daemon, by its records, of each packet
share        of the mean total, as the bar; GRO: frames sent as one, mean
mostly in    the stage in which packets spent most, and its share
≤            found by polling: it was no longer than this, maybe shorter
kicks, calls by and to the guest; suppr.: not needed; refused: not read
records lost overwritten before they could be read: times lack them
below total  in the host kernel (--kernel-stages), where it is measured
tx  guest to wire                    rx  wire to guest
notice       from waking up to seeing that there is work
queued       tx: until this burst had its turn; limited: by the guest's limit
gather       tx: reading and checking the guest's descriptors
egress       tx: in the datapath's system call or ring
starved      rx: waiting for the guest's buffers
place        rx: from the datapath into the guest's buffers
publish, complete   giving the buffers back to the guest
signal       interrupting the guest, or finding that it needs none";
const WIDTH: u16 = 74;

/// The last line that the help can be scrolled to.
#[must_use]
pub fn last_line() -> usize {
    TEXT.lines().count() - 1
}

/// Draws the help over `area`, from this line on.
pub fn render(frame: &mut Frame, area: Rect, from_line: usize) {
    // The text and its border.
    let height = (lines(TEXT.lines().count()) + 2).min(area.height);
    let width = WIDTH.min(area.width);
    let area = Rect {
        x: area.x + (area.width - width) / 2,
        y: area.y + (area.height - height) / 2,
        width,
        height,
    };
    let block = Block::bordered().title(" ringscope top: any of Esc, h, ? closes ");
    frame.render_widget(Clear, area);
    frame.render_widget(Paragraph::new(TEXT).block(block).scroll((lines(from_line), 0)), area);
}
