"""LatentOmni-Instruct: captioned videos become audited, segment-grounded trajectories.

The paper's three stages, in the order in which an item passes them:

    captions    rows of caption files -> `Caption`
    questions   stage 1: one question of a caption, scored, filtered; `balance`: over categories
    segments    stage 2: the clip cut by time (`cut`), what is seen and heard in each piece
    chains      stage 3: reasoning that cites pieces, audited, checked against the answer
    dataset     what was kept as trajectories, and the ledger; `card`: numbers, data card;
                `messages`: the SFT layout
    browse      a page to look through them

`items` is what all of them speak of. Models are asked by `prompts`, `replies`, `parsing`, `store`.
`pipeline` is the Apache Beam graph of it all, `engine` a stage of it. Nothing here knows JAX.
"""
