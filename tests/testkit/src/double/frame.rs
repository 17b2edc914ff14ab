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

    /// Whether nothing was written behind it. The frame itself is the call's until it returns, all
    /// of it.
    pub fn guarded(&self) -> bool {
        self.bytes[self.length..].iter().all(|byte| *byte == POISON)
    }

    /// Whether nobody wrote into it since it was poisoned.
    pub fn untouched(&self) -> bool {
        self.bytes.iter().all(|byte| *byte == POISON)
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
    fn a_frame_shows_what_was_written_behind_it_and_after_its_release() {
        let mut frame = Frame::new(8);
        frame.lent().fill(1);
        assert!(frame.guarded() && !frame.untouched());
        frame.bytes[8] = 0;
        assert!(!frame.guarded());
        frame.release();
        assert!(frame.guarded() && frame.untouched() && frame.bytes().len() == 8);
        frame.lent()[7] = 0;
        assert!(!frame.untouched());
    }
}
