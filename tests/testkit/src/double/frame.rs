//! Frames that are poisoned: what nobody wrote shows.

/// What every byte of a frame is before a call, and of released memory after one.
pub const POISON: u8 = 0xa5;

/// A frame to load a page into, and bytes behind it that no call may touch.
#[derive(Debug)]
pub struct Frame {
    bytes: Vec<u8>,
    length: usize,
}

impl Frame {
    /// Bytes behind the frame.
    const GUARD: usize = 64;

    /// A poisoned frame of `length` bytes.
    pub fn new(length: usize) -> Self {
        Frame { bytes: vec![POISON; length + Self::GUARD], length }
    }

    /// What is lent to a call.
    pub fn lent(&mut self) -> &mut [u8] {
        &mut self.bytes[..self.length]
    }

    /// What it holds.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }

    /// Whether everything from `used` bytes on is as it was lent.
    pub fn untouched_from(&self, used: usize) -> bool {
        self.bytes[used.min(self.length)..].iter().all(|byte| *byte == POISON)
    }

    /// Poisons it, as a pager might that gives it to somebody else.
    pub fn release(&mut self) {
        self.bytes.fill(POISON);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_shows_what_was_written_past_its_use() {
        let mut frame = Frame::new(8);
        frame.lent()[..3].fill(1);
        assert!(frame.untouched_from(3) && !frame.untouched_from(2));
        frame.lent()[7] = 0;
        assert!(!frame.untouched_from(3));
        frame.release();
        assert!(frame.untouched_from(0) && frame.bytes().len() == 8);
    }
}
