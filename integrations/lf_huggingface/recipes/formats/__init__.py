"""The published files, read record by record; every mistake says which file, which record, what was wanted.

json_files.py     arrays and lines of JSON, streamed
qangaroo.py       WikiHop
trivia_qa.py      TriviaQA with its evidence
hotpot_qa.py      HotpotQA, distractor setting
labelled.py       IMDB's folders, Hyperpartisan's XML, CSV and JSON lines of one's own
articles.py       arXiv and PubMed
plain_text.py     text, JSON lines or folders
"""
