"""The kinds of fault that an audit looks for, and what each means."""

KINDS = {
    "unreadable": "The audio cannot be decoded.",
    "silence": "Nobody speaks: the loudest moments are faint, or no louder than the softest.",
    "clipping": "The wave is cut off at its peak, as of a recording that was too loud.",
    "narrow band": "The highest sounds are missing, while most clips have them.",
    "cut off": "The clip begins or ends in the middle of a sound.",
    "duplicate audio": "The same recording stands in two splits, or with two texts.",
    "odd characters": "The text has a kind of character that hardly another has.",
    "other language": "The letters follow one another as in no other text: another language, or gibberish.",
    "speaking rate": "There is far more or far less text than is spoken in this time.",
    "unlikely text": "The model finds another text a thousand times likelier: a wrong transcript, or its own mistake.",
    "shared sentence": "Train has the sentence, or all of it but a word, that validation or test has.",
}
