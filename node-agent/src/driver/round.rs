//! Rounds of looking that go on beside the driver, one at a time.

/// One that is asked for while another goes on comes behind it: that one may have seen already what is asked about, before it
/// was so. Asked for any number of times, it is one.
#[derive(Debug, Default)]
pub(super) struct Round {
    under_way: bool,
    again: bool,
}

impl Round {
    /// Does it begin now? It ends with [`Self::ended`], or with the process.
    pub(super) const fn begins(&mut self) -> bool {
        let begins = !std::mem::replace(&mut self.under_way, true);
        self.again |= !begins;
        begins
    }

    /// Its last word has come. Is it to begin once more?
    pub(super) const fn ended(&mut self) -> bool {
        self.under_way = false;
        std::mem::replace(&mut self.again, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_goes_on_at_a_time_and_whatever_is_asked_for_meanwhile_is_one_more_behind_it() {
        let mut round = Round::default();
        assert!(round.begins());
        assert!(!round.begins() && !round.begins());
        assert!(round.ended());
        assert!(round.begins(), "the one more");
        assert!(!round.ended(), "nobody asked for another");
        assert!(round.begins());
    }
}
