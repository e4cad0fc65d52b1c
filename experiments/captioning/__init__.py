"""Parts of the captioning experiment: captions and their words, retrieval captioning, a decoder."""
