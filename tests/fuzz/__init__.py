"""A fuzzer of the command line: valid inputs are changed a little, and whatever comes must end in a message.

`edits` changes trees and bytes, `formats` reads and writes the files that are trees, `running` runs a command in a
child process with limits, `bases` makes the valid inputs, and `subjects` says what is changed and which command reads
it.
"""
