"""The benchmark's report: pictures, a page, and sentences that say what wins where."""
