# find_package(Katana): the same as include(Katana).
include("${CMAKE_CURRENT_LIST_DIR}/Katana.cmake")
set(Katana_FOUND TRUE)
