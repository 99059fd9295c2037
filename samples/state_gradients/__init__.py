"""The experiments of Verwimp et al. (2020) as one command: train, export, analyse, draw, judge.

`engine` runs steps, `study` lists them, `scales` sets their sizes, `corpora` prepares the texts,
`commands` calls mnemoscope, `figures` draws, `measures` reads numbers from results, `verdicts`
decides what a claim is worth, and `claims` writes the page. README.md is the manual.
"""
